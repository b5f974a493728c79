-- Apply results. ARGV[2..]: per settlement a header and the answer ("" for none).
-- header: id, epoch, kind, state, sent, answer kind (0 none, 1 inline, 2 blob), delay, answer bytes,
-- reason, note
-- Reply: per settlement 1 applied, 0 refused.

local FINISH, RETRY = 0, 1
local HEADER = '>c16I4BBBBddBc0I4c0'

-- The blob of a refused answer is garbage, unless it is the answer this record has.
local function refuse(r, answer_kind, answer)
  count(r and r.lane or REQUESTS, 'stale', 1)
  if answer_kind ~= 2 then return 0 end
  local name = blob_name(answer)
  if not r or owned_blob(r, OWNS_ANSWER_BLOB, 'a:') ~= name then drop_blob(name) end
  return 0
end

-- Whether it comes from who holds the lease, or ends a record that nobody leased because it is away.
local function is_current(r, epoch, kind)
  if r.state == RUNNING then return r.epoch == epoch end
  return away(r) and epoch == 0 and kind == FINISH
end

local function settle(header, answer)
  local id, epoch, kind, state, sent, answer_kind, delay, answer_bytes, reason, note = unpack_(HEADER, header)
  local r = record(id)
  if not r or not is_current(r, epoch, kind) then return refuse(r, answer_kind, answer) end
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
commit()
return replies
