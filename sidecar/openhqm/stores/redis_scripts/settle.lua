-- Apply results. ARGV[2..]: per settlement a header and the answer ("" for none).
-- header: id, epoch, kind, state, sent, answer kind (0 none, 1 inline, 2 blob), delay, answer bytes,
-- reason, note
-- Reply: per settlement 1 applied, 0 refused.

local FINISH, RETRY = 0, 1
local PLAIN = bor(REQUEST, SCOPED)
local HEADER = '>c16I4BBBBddBc0I4c0'

-- The blob of a refused answer is garbage, unless it is the answer this record has.
local function refuse(r, id, answer_kind, answer)
  count(r and r.lane or REQUESTS, 'stale', 1)
  if answer_kind ~= 2 then return 0 end
  local current = r and has(r, OWNS_ANSWER_BLOB) and call('GET', P .. 'a:' .. id)
  if not current or blob_name(current) ~= blob_name(answer) then drop_blob(blob_name(answer)) end
  return 0
end

-- The usual end, from meta to meta because it comes with every request: an answer for a record that
-- nothing hangs on but its request. False when there is more to do than this.
local done = {[REQUESTS] = 0, [CALLBACKS] = 0}
local TALES = {[REQUESTS] = tale(REQUESTS, DONE), [CALLBACKS] = tale(CALLBACKS, DONE)}
local EXPIRES_AT = NOW + ANSWER_TTL
local function answer_plainly(id, epoch, sent, answer, answer_bytes)
  local meta = not records[id] and metas[id]
  if not meta then return false end
  local ready_at, deadline, lane, accepted_at, seq, state, flags, current, attempts, claims, started_at, _, _,
    held = unpack_(FIXED, meta)
  if state ~= RUNNING or current ~= epoch or band(flags, bnot(PLAIN)) ~= 0 then return false end
  meta = pack(FIXED, ready_at, deadline, lane, accepted_at, seq, DONE, bor(band(flags, SCOPED), ANSWER), epoch,
    attempts + sent, claims, started_at, NOW, EXPIRES_AT, answer_bytes) .. sub(meta, FIXED_SIZE + 1)
  metas[id] = meta
  put('m:' .. id, meta)
  put('a:' .. id, answer)
  remove('q:' .. id)
  zrem('leases', id)
  if deadline > 0 then zrem('deadlines', id) end
  zadd('expiries', EXPIRES_AT, id)
  changes[#changes + 1] = id .. TALES[lane]
  bytes_delta = bytes_delta + answer_bytes - held
  done[lane] = done[lane] + 1
  return true
end

local function settle(header, answer)
  local id, epoch, kind, state, sent, answer_kind, delay, answer_bytes, reason, note = unpack_(HEADER, header)
  if state == DONE and answer_kind == 1 and reason == '' and note == ''
    and answer_plainly(id, epoch, sent, answer, answer_bytes) then return 1 end
  local r = record(id)
  if not r or r.state ~= RUNNING or r.epoch ~= epoch then return refuse(r, id, answer_kind, answer) end
  if answer_kind == 2 and not keep_blob(blob_name(answer)) then return 2 end
  if sent == 1 then r.attempts = r.attempts + 1 end
  if note ~= '' then
    call('APPEND', P .. 'n:' .. id, note .. '\n')
    set(r, NOTED)
  end
  if kind == FINISH then
    if answer_kind > 0 then
      set(r, answer_kind == 2 and ANSWER + OWNS_ANSWER_BLOB or ANSWER)
      put('a:' .. id, answer)
    end
    finish(r, state, reason, answer_bytes)
  elseif has(r, CANCEL_REQUESTED) then
    finish(r, CANCELLED, '', 0)
  else
    wait_again(r, NOW + delay)
  end
  return 1
end

local ids, replies = {}, {}
for i = 2, #ARGV, 2 do ids[#ids + 1] = sub(ARGV[i], 1, 16) end
load(ids)
for i = 2, #ARGV, 2 do replies[#replies + 1] = settle(ARGV[i], ARGV[i + 1]) end
for lane, many in pairs(done) do
  count(lane, 'running', -many)
  count(lane, 'done', many)
end
commit()
return replies
