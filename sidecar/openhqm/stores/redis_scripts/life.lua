-- How records come to be, wait, end and go: the transitions the scripts share. Follows common.lua.

-- Name of the blob in a stored request or answer: length, head, kind, then size and name.
local function blob_name(payload)
  return sub(payload, 4 + unpack_('>I4', payload) + 1 + 8 + 1)
end

local function drop_blob(name)
  if BLOBS_ELSEWHERE == 1 then
    garbage[#garbage + 1] = name
  else
    remove('blob:' .. name)
  end
end

-- Name of the blob that is a record's request or answer, nil when none is. *owns* is the flag that says so,
-- *key* where it would be named.
local function owned_blob(r, owns, key)
  local payload = has(r, owns) and call('GET', P .. key .. r.id)
  return payload and blob_name(payload) or nil
end

local function drop_owned_blob(r, owns, key)
  local name = owned_blob(r, owns, key)
  if name then drop_blob(name) end
end

-- Keep a blob for good, as part of the transition that names it. False when it is gone.
local function keep_blob(name)
  local key = P .. 'blob:' .. name
  return BLOBS_ELSEWHERE == 1 or call('PERSIST', key) == 1 or call('EXISTS', key) == 1
end

-- Put a record where lease finds it when its turn and its time have come.
local function queue(id, lane, is_blocked, ready_at, deadline, score)
  if deadline > 0 then zadd('timers', deadline, id) end
  if is_blocked then return end
  if ready_at > NOW then zadd(DELAYED[lane], ready_at, id) else zadd(READY[lane], score, id) end
  wake = bor(wake, 2 ^ lane)
end

local function line_up(r)
  queue(r.id, r.lane, has(r, BLOCKED), r.ready_at, r.deadline, rank(r))
end

-- Put a new record where outbound.lua finds it.
local function offer(id, lane, deadline, seq)
  if deadline > 0 then zadd('timers', deadline, id) end
  zadd('publishing', seq, id)
  count(lane, 'publishing', 1)
  wake = bor(wake, TO_PUBLISH)
end

-- Say where a record's request is: PUBLISHING, CARRIED, or 0 for here.
local function set_stage(r, stage)
  if has(r, PUBLISHING) then
    zrem('publishing', r.id)
    zrem('in-hand', r.id)
    count(r.lane, 'publishing', -1)
  elseif has(r, CARRIED) then
    count(r.lane, 'carried', -1)
  end
  if stage == CARRIED then count(r.lane, 'carried', 1) end
  clear(r, PUBLISHING + CARRIED)
  set(r, stage)
  change(r)
end

local function step_out(r)
  if has(r, BLOCKED) then return end
  zrem(READY[r.lane], r.id)
  zrem(DELAYED[r.lane], r.id)
end

-- Take a record out of its key's line and let the next one have its turn.
local function leave_line(r)
  local line = P .. 'line:' .. strings(r)
  call('ZREM', line, r.id)
  if has(r, BLOCKED) then
    clear(r, BLOCKED)
    count(r.lane, 'blocked', -1)
    return
  end
  local head = call('ZRANGE', line, 0, 0)[1]
  local next_ = head and record(head)
  if next_ and has(next_, BLOCKED) then
    clear(next_, BLOCKED)
    count(next_.lane, 'blocked', -1)
    change(next_)
    line_up(next_)
  end
end

-- LIFE of a new record.
local function birth(flags, size)
  return pack('>' .. LIFE, QUEUED, bor(flags, REQUEST), 0, 0, 0, 0, 0, 0, size + RESERVE)
end

-- Have a record wait for its turn, unless it is the first of its key's line.
local function block(r)
  if call('ZRANGE', P .. 'line:' .. strings(r), 0, 0)[1] == r.id then return end
  set(r, BLOCKED)
  count(r.lane, 'blocked', 1)
end

-- Join the line of the record's key. Returns the meta that says whether it has to wait there; one that is
-- away waits elsewhere, and still holds up those behind it.
local function join_line(id, meta, seq)
  local r = decode(id, meta)
  call('ZADD', P .. 'line:' .. strings(r), seq, id)
  if away(r) then return meta, false end
  block(r)
  return encode(r), has(r, BLOCKED)
end

-- Write a new record. *life* is as of birth(), *tail* TERMS and strings; the rest is told apart
-- because it decides where the record goes. Made of bytes, not of a table, for accept's sake.
local function create(id, life, flags, ready_at, deadline, lane, seq, priority, size, tail)
  local meta = pack(PLACE, ready_at, deadline, lane, NOW, seq) .. life .. tail
  local is_blocked = false
  if band(flags, KEYED) ~= 0 then meta, is_blocked = join_line(id, meta, seq) end
  put('m:' .. id, meta)
  zadd(ALL[lane], seq, id)
  if band(flags, PUBLISHING) ~= 0 then
    offer(id, lane, deadline, seq)
  else
    queue(id, lane, is_blocked, ready_at, deadline, (9 - priority) * LEVEL + seq)
  end
  count(lane, 'accepted', 1)
  count(lane, 'queued', 1)
  bytes_delta = bytes_delta + size + RESERVE
end

local function next_seq(many)
  return call('HINCRBY', P .. 'counts', 'seq', many) - many + 1
end

-- The id `rules.callback_id` gives: version 7 becomes 8.
local function callback_id(id)
  return sub(id, 1, 6) .. string.char(bit.bxor(string.byte(id, 7), 0xF0)) .. sub(id, 8)
end

local function send_callback(r)
  local request = call('GET', P .. 'c:' .. r.id)
  local id = callback_id(r.id)
  local size = unpack_('>I4', request)
  local _, _, max_claims = terms(r)
  local tail = pack(TERMS, 5, REPEAT, max_claims, size) .. pack('>I2BBc0B', 0, 0, #r.id, r.id, 0)
  create(id, birth(0, size), 0, NOW, 0, CALLBACKS, next_seq(1), 5, size, tail)
  put('q:' .. id, request)
end

local function move(r, state)
  count(r.lane, STATES[r.state], -1)
  count(r.lane, STATES[state], 1)
  r.state = state
  change(r)
end

local function drop_request(r)
  if not has(r, REQUEST) then return end
  drop_owned_blob(r, OWNS_REQUEST_BLOB, 'q:')
  remove('q:' .. r.id)
  clear(r, REQUEST + OWNS_REQUEST_BLOB)
end

local function drop_callback(r)
  if has(r, CALLBACK) then remove('c:' .. r.id) end
  clear(r, CALLBACK)
end

-- Give back a scope, unless another record has it by now.
local function free_scope(r)
  local _, scope = strings(r)
  local holder = call('GET', P .. 'x:' .. scope)
  if holder and sub(holder, 1, 16) == r.id then remove('x:' .. scope) end
end

-- End a record that is not in the ready or delayed set. *answer_bytes* counts a stored answer.
local function finish(r, state, reason, answer_bytes)
  if away(r) then set_stage(r, 0) end
  move(r, state)
  r.finished_at = NOW
  r.expires_at = NOW + (state == FAILED and DEAD_TTL or ANSWER_TTL)
  r.rest = r.rest .. reason
  if has(r, KEYED) then leave_line(r) end
  if has(r, CALLBACK) then send_callback(r) end
  if state == FAILED then
    count(r.lane, 'dead', 1)
    local _, _, _, request_bytes = terms(r)
    zadd(FAILURES[r.lane], r.seq, r.id)
    hold(r, request_bytes + answer_bytes)
  else
    hold(r, answer_bytes)
    drop_request(r)
    drop_callback(r)
  end
  if has(r, SCOPED) and r.attempts == 0 and (state == CANCELLED or state == EXPIRED) then
    free_scope(r)
    clear(r, SCOPED)
  end
  zadd('timers', r.expires_at, r.id)
  notify(r, reason)
end

-- End a record that waits. Of one that is away nobody knows whether it ran.
local function end_waiting(r, state)
  if away(r) then r.attempts = r.attempts + 1 else step_out(r) end
  finish(r, state, '', 0)
end

-- Make a leased record wait again.
local function wait_again(r, ready_at)
  move(r, r.attempts > 0 and RETRYING or QUEUED)
  r.ready_at = ready_at
  if r.deadline == 0 then zrem('timers', r.id) end
  line_up(r)
  notify(r, '')
end

-- Forget a final record.
local function delete(r)
  drop_request(r)
  drop_callback(r)
  drop_owned_blob(r, OWNS_ANSWER_BLOB, 'a:')
  if has(r, ANSWER) then remove(answer_key(r)) end
  if has(r, NOTED) then remove('n:' .. r.id) end
  if has(r, SCOPED) then free_scope(r) end
  if r.state == FAILED then
    zrem(FAILURES[r.lane], r.id)
    if not has(r, REPLAYED) then count(r.lane, 'dead', -1) end
  end
  hold(r, 0)
  remove('m:' .. r.id)
  zrem(ALL[r.lane], r.id)
  zrem('timers', r.id)
  r.deleted = true
end
