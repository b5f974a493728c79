-- What every script starts with: constants, the record codec, and one unit of work.
--
-- A script loads the records it needs, changes them as tables, and calls commit() once, which
-- writes everything in a handful of commands, so that each key is touched once for a batch.
--
-- KEYS[1] is the prefix "openhqm:{queue}:"; all keys of a queue share its hash slot. Under it:
--   m:<id>       meta of a record: HEAD, then FIXED, then strings (see below)
--   q:<id>       its request       a:<id>  its answer       c:<id>  the callback to be sent
--   n:<id>       attempt notes     x:<scope>  id and fingerprint that hold an idempotency scope
--   blob:<name>  a list of chunks; expires until a record that names it is committed
--   line:<key>   ids of unfinished records of an ordering key, by seq; only its head may run
--   counts       hash: seq, bytes, and per lane the figures of `Counts`
--   timers       every record, by the time sweep has to look at it: deadline, end of lease, expiry
--   <lane>:ready by priority and seq   <lane>:delayed by ready_at
--   <lane>:all   by seq                <lane>:failed  by seq
--
-- ARGV[1] holds the options of the calling process.

local P = KEYS[1]
local call, pack, unpack_, sub = redis.call, struct.pack, struct.unpack, string.sub
local band, bor, bnot = bit.band, bit.bor, bit.bnot

local MAX_BACKLOG, MAX_BYTES, RESERVE, ANSWER_TTL, DEAD_TTL = unpack_('>ddddd', ARGV[1])
local TIME = call('TIME')
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1000000
local NEVER = 1e18

local QUEUED, RUNNING, RETRYING, DONE, FAILED, CANCELLED, EXPIRED = 0, 1, 2, 3, 4, 5, 6
local STATES = {[0] = 'queued', 'running', 'retrying', 'done', 'failed', 'cancelled', 'expired'}
local LANES = {[0] = 'requests', 'callbacks'}
local CALLBACKS = 1
local REPEAT = 0

-- Flags of a record. OWNS_*: the blob is deleted with this record.
local CANCEL_REQUESTED, CALLBACK, OWNS_REQUEST_BLOB, OWNS_ANSWER_BLOB = 1, 2, 4, 8
local ANSWER, REPLAYED, NOTED, REQUEST = 16, 32, 64, 128
local KEYED, BLOCKED, SCOPED = 256, 512, 1024

-- HEAD changes: state, flags, epoch, attempts, claims, ready_at, started_at, finished_at,
-- expires_at, bytes held, seq, accepted_at, deadline (0: none). FIXED never does: lane, priority,
-- on_lost, max_claims, request bytes. Then: key, scope, parent, replay_of, each with its length.
-- The reason of a final record is the rest.
local HEAD = '>BI2I4I4I4dddddddd'
local HEAD_SIZE = 79
local FIXED = 'BBBI4d'
local RECORD = HEAD .. FIXED
local STRINGS = '>I2c0Bc0Bc0Bc0'
local STRINGS_AT = 16

-- Priority decides before seq: a level is wider than any seq.
local LEVEL = 2 ^ 48

local records = {}
local dirty = {}
local values, removed, deltas, changes = {}, {}, {}, {}
local added, taken = {}, {}
local wake = 0 -- bit per lane that has something to lease

local function has(r, flag)
  return band(r.flags, flag) ~= 0
end

local function set(r, flag)
  r.flags = bor(r.flags, flag)
end

local function clear(r, flag)
  r.flags = band(r.flags, bnot(flag))
end

local function waiting(r)
  return r.state == QUEUED or r.state == RETRYING
end

local function count(field, delta)
  deltas[field] = (deltas[field] or 0) + delta
end

local function lane_count(r, name, delta)
  count(LANES[r.lane] .. '.' .. name, delta)
end

-- ZADD and ZREM of a batch, gathered by key. Adding comes first, so a record that enters and
-- leaves a set within one script is not in it.
local function zadd(key, score, id)
  local set_ = added[key]
  if not set_ then
    set_ = {}
    added[key] = set_
  end
  set_[#set_ + 1] = score
  set_[#set_ + 1] = id
end

local function zrem(key, id)
  local set_ = taken[key]
  if not set_ then
    set_ = {}
    taken[key] = set_
  end
  set_[#set_ + 1] = id
end

local function put(key, value)
  values[#values + 1] = P .. key
  values[#values + 1] = value
end

local function remove(key)
  removed[#removed + 1] = P .. key
end

local function change(r)
  if not r.dirty then
    r.dirty = true
    dirty[#dirty + 1] = r
  end
end

local function notify(r, reason)
  changes[#changes + 1] = pack('>c16BBBc0', r.id, r.lane, r.state, #reason, reason)
end

local function hold(r, bytes)
  count('bytes', bytes - r.held)
  r.held = bytes
end

local function decode(id, meta)
  local state, flags, epoch, attempts, claims, ready_at, started_at, finished_at, expires_at, held,
    seq, accepted_at, deadline, lane, priority, on_lost, max_claims, request_bytes = unpack_(RECORD, meta)
  return {
    id = id, state = state, flags = flags, epoch = epoch, attempts = attempts, claims = claims,
    ready_at = ready_at, started_at = started_at, finished_at = finished_at, expires_at = expires_at,
    held = held, seq = seq, accepted_at = accepted_at, deadline = deadline, lane = lane,
    priority = priority, on_lost = on_lost, max_claims = max_claims, request_bytes = request_bytes,
    rest = sub(meta, HEAD_SIZE + 1), dirty = false,
  }
end

local function encode(r)
  return pack(HEAD, r.state, r.flags, r.epoch, r.attempts, r.claims, r.ready_at, r.started_at,
    r.finished_at, r.expires_at, r.held, r.seq, r.accepted_at, r.deadline) .. r.rest
end

-- key, scope, parent, replay_of; each "" when there is none
local function strings(r)
  return unpack_(STRINGS, r.rest, STRINGS_AT)
end

-- Read records into `records`; those not held stay nil.
local function load(ids)
  local missing, keys = {}, {}
  for i = 1, #ids do
    if not records[ids[i]] then
      missing[#missing + 1] = ids[i]
      keys[#keys + 1] = P .. 'm:' .. ids[i]
    end
  end
  if #keys > 0 then
    local metas = call('MGET', unpack(keys))
    for i = 1, #missing do
      if metas[i] then records[missing[i]] = decode(missing[i], metas[i]) end
    end
  end
end

local function load_one(id)
  load({id})
  return records[id]
end

-- Name of the blob in a stored request or answer: length, head, kind, then size and name.
local function blob_name(payload)
  return sub(payload, 4 + unpack_('>I4', payload) + 1 + 8 + 1)
end

local function delete_blob(key)
  local payload = call('GET', P .. key)
  if payload then remove('blob:' .. blob_name(payload)) end
end

-- Keep a blob for good, as part of the transition that names it. False when it is gone.
local function keep_blob(name)
  local key = P .. 'blob:' .. name
  return call('PERSIST', key) == 1 or call('EXISTS', key) == 1
end

-- Put a waiting record where lease finds it; its turn and its time must have come or be known.
local function line_up(r)
  local lane = LANES[r.lane]
  zadd('timers', r.deadline > 0 and r.deadline or NEVER, r.id)
  if has(r, BLOCKED) then return end
  if r.ready_at > NOW then
    zadd(lane .. ':delayed', r.ready_at, r.id)
  else
    zadd(lane .. ':ready', (9 - r.priority) * LEVEL + r.seq, r.id)
  end
  wake = bor(wake, 2 ^ r.lane)
end

local function step_out(r)
  if has(r, BLOCKED) then return end
  local lane = LANES[r.lane]
  zrem(lane .. ':ready', r.id)
  zrem(lane .. ':delayed', r.id)
end

-- Take a record out of its key's line and let the next one have its turn.
local function leave_line(r)
  local line = P .. 'line:' .. strings(r)
  call('ZREM', line, r.id)
  if has(r, BLOCKED) then
    clear(r, BLOCKED)
    lane_count(r, 'blocked', -1)
    return
  end
  local head = call('ZRANGE', line, 0, 0)[1]
  local next_ = head and load_one(head)
  if next_ and has(next_, BLOCKED) then
    clear(next_, BLOCKED)
    lane_count(next_, 'blocked', -1)
    change(next_)
    line_up(next_)
  end
end

-- A new record. *rest* is FIXED and what follows; *size* the bytes of its request.
local function create(id, flags, ready_at, deadline, seq, lane, priority, size, rest)
  local r = {
    id = id, state = QUEUED, flags = bor(flags, REQUEST), epoch = 0, attempts = 0, claims = 0,
    ready_at = ready_at, started_at = 0, finished_at = 0, expires_at = 0, held = size + RESERVE,
    seq = seq, accepted_at = NOW, deadline = deadline, lane = lane, priority = priority,
    request_bytes = size, rest = rest, dirty = true,
  }
  records[id] = r
  dirty[#dirty + 1] = r
  if has(r, KEYED) then
    local line = P .. 'line:' .. strings(r)
    call('ZADD', line, seq, id)
    if call('ZRANGE', line, 0, 0)[1] ~= id then
      set(r, BLOCKED)
      lane_count(r, 'blocked', 1)
    end
  end
  zadd(LANES[lane] .. ':all', seq, id)
  line_up(r)
  return r
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
  local rest = pack('>BBBI4d', CALLBACKS, 5, REPEAT, r.max_claims, size)
    .. pack('>I2BBc0B', 0, 0, #r.id, r.id, 0)
  create(id, 0, NOW, 0, next_seq(1), CALLBACKS, 5, size, rest)
  put('q:' .. id, request)
  count('callbacks.accepted', 1)
  count('callbacks.queued', 1)
  count('bytes', size + RESERVE)
end

local function move(r, state)
  lane_count(r, STATES[r.state], -1)
  lane_count(r, STATES[state], 1)
  r.state = state
  change(r)
end

local function drop_request(r)
  if has(r, OWNS_REQUEST_BLOB) then delete_blob('q:' .. r.id) end
  remove('q:' .. r.id)
  if has(r, CALLBACK) then remove('c:' .. r.id) end
  clear(r, REQUEST + OWNS_REQUEST_BLOB + CALLBACK)
end

-- Give back a scope, unless another record has it by now.
local function free_scope(r)
  local _, scope = strings(r)
  local holder = call('GET', P .. 'x:' .. scope)
  if holder and sub(holder, 1, 16) == r.id then remove('x:' .. scope) end
end

-- End a record that is not in the ready or delayed set. *answer_bytes* counts a stored answer.
local function finish(r, state, reason, answer_bytes)
  move(r, state)
  r.finished_at = NOW
  r.expires_at = NOW + (state == FAILED and DEAD_TTL or ANSWER_TTL)
  r.rest = r.rest .. reason
  if has(r, KEYED) then leave_line(r) end
  if has(r, CALLBACK) then send_callback(r) end
  if state == FAILED then
    lane_count(r, 'dead', 1)
    zadd(LANES[r.lane] .. ':failed', r.seq, r.id)
    hold(r, r.request_bytes + answer_bytes)
  else
    hold(r, answer_bytes)
    drop_request(r)
  end
  if has(r, SCOPED) and r.attempts == 0 and (state == CANCELLED or state == EXPIRED) then
    free_scope(r)
    clear(r, SCOPED)
  end
  zadd('timers', r.expires_at, r.id)
  notify(r, reason)
end

-- Make a leased record wait again.
local function wait_again(r, ready_at)
  move(r, r.attempts > 0 and RETRYING or QUEUED)
  r.ready_at = ready_at
  line_up(r)
  notify(r, '')
end

-- Forget a final record.
local function delete(r)
  local lane = LANES[r.lane]
  if has(r, REQUEST) then drop_request(r) end
  if has(r, OWNS_ANSWER_BLOB) then delete_blob('a:' .. r.id) end
  if has(r, ANSWER) then remove('a:' .. r.id) end
  if has(r, NOTED) then remove('n:' .. r.id) end
  if has(r, SCOPED) then free_scope(r) end
  if r.state == FAILED then
    zrem(lane .. ':failed', r.id)
    if not has(r, REPLAYED) then lane_count(r, 'dead', -1) end
  end
  hold(r, 0)
  remove('m:' .. r.id)
  zrem(lane .. ':all', r.id)
  zrem('timers', r.id)
  r.deleted = true
end

-- Write everything; tell other processes. Returns the changes as they were published.
local function commit()
  for i = 1, #dirty do
    local r = dirty[i]
    if not r.deleted then put('m:' .. r.id, encode(r)) end
  end
  if #values > 0 then call('MSET', unpack(values)) end
  if #removed > 0 then call('UNLINK', unpack(removed)) end
  for key, members in pairs(added) do call('ZADD', P .. key, unpack(members)) end
  for key, members in pairs(taken) do call('ZREM', P .. key, unpack(members)) end
  for field, delta in pairs(deltas) do
    if delta ~= 0 then call('HINCRBY', P .. 'counts', field, delta) end
  end
  local told = table.concat(changes)
  if wake > 0 or #changes > 0 then call('PUBLISH', P .. 'changes', string.char(wake) .. told) end
  return told
end
