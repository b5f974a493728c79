-- Apply results. ARGV[2..]: per settlement a header and the answer ("" for none).
-- header: id, epoch, kind, state, sent, answer kind (0 none, 1 inline, 2 blob), delay, answer bytes,
-- reason, note
-- Reply: per settlement 1 applied, 0 refused.

local FINISH, RETRY = 0, 1
local HEADER = '>c16I4BBBBddBc0I4c0'

-- The blob of a refused answer is garbage, unless it is the answer this record has.
local function refuse(r, id, answer_kind, answer)
  count(r and r.lane or REQUESTS, 'stale', 1)
  if answer_kind ~= 2 then return 0 end
  local current = r and has(r, OWNS_ANSWER_BLOB) and call('GET', P .. 'a:' .. id)
  if not current or blob_name(current) ~= blob_name(answer) then drop_blob(blob_name(answer)) end
  return 0
end

local function settle(header, answer)
  local id, epoch, kind, state, sent, answer_kind, delay, answer_bytes, reason, note = unpack_(HEADER, header)
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
commit()
return replies
