-- Look at records whose timer ran out. ARGV[2]: most records. Reply: how many, 1 when there may be more,
-- the changes made.

local most = tonumber(ARGV[2])

local function judge_lapsed(r)
  r.attempts = r.attempts + 1
  r.claims = r.claims + 1
  local _, on_lost, max_claims = terms(r)
  if on_lost ~= REPEAT then
    finish(r, FAILED, 'outcome-unknown', 0)
  elseif has(r, CANCEL_REQUESTED) then
    finish(r, CANCELLED, '', 0)
  elseif r.claims >= max_claims then
    finish(r, FAILED, 'poison', 0)
  else
    wait_again(r, NOW)
  end
end

local EXAMINED = 2048 -- most records looked for in entries of leases and deadlines, few of which still hold

local ids, kinds, scores = {}, {}, {} -- the records to look at; kind of a shared entry, score of one of its own
local examined, more = 0, 0

-- Whether a lease or a deadline still holds for a record. Of a meta, by place: state 34, epoch 37-40.
local function holds(kind, meta, epoch)
  if not meta then return false end
  local state = string.byte(meta, 34)
  if kind == DATED then return state == QUEUED or state == RETRYING end
  return state == RUNNING and sub(meta, 37, 40) == epoch
end

-- Those of a shared entry for which it holds: ids, and their epochs for a lease.
local function those_held(kind, entry)
  local many, all, members, epochs = (#entry - 1) / (kind == LEASED and 20 or 16), {}, {}, {}
  for i = 1, many do all[i] = sub(entry, 16 * i - 14, 16 * i + 1) end
  load(all)
  for i = 1, many do
    local epoch = sub(entry, 16 * many + 4 * i - 2, 16 * many + 4 * i + 1)
    if holds(kind, metas[all[i]], epoch) then members[#members + 1], epochs[#epochs + 1] = all[i], epoch end
  end
  examined = examined + many
  return table.concat(members), table.concat(epochs)
end

-- Note the records of a shared entry, as many as may be looked at; the others get a new one.
local function open_entry(entry)
  local kind, members, epochs = sub(entry, 1, 1), sub(entry, 2), ''
  if kind ~= ENDED then members, epochs = those_held(kind, entry) end
  local now = math.min(#members / 16, most - #ids)
  for i = 1, now do
    ids[#ids + 1] = sub(members, 16 * i - 15, 16 * i)
    kinds[#ids] = kind
  end
  zrem('timers', entry)
  if 16 * now < #members then
    zadd('timers', NOW, kind .. sub(members, 16 * now + 1) .. sub(epochs, 4 * now + 1))
    more = 1
  end
end

-- An entry of the record's own. That of a deadline stays when the record is leased in company, and any may
-- when it is answered so; it says nothing then, for what that call wrote does.
local function judge_own(r, score)
  if r.state >= DONE and r.expires_at <= NOW then
    delete(r)
  elseif waiting(r) then
    end_waiting(r, EXPIRED)
  elseif r.state == RUNNING and score ~= r.deadline then
    judge_lapsed(r)
  else
    zrem('timers', r.id)
  end
end

-- Whether the record has an entry of its own that says until when its lease was extended.
local function is_extended(r)
  local score = call('ZSCORE', P .. 'timers', r.id)
  return score and tonumber(score) ~= r.deadline
end

-- The record may have changed since its entry was found to hold: it may be in two.
local function judge_shared(r, kind)
  if kind == ENDED then
    if r.state >= DONE and r.expires_at <= NOW then delete(r) end
  elseif kind == DATED then
    if waiting(r) and r.deadline > 0 and r.deadline <= NOW then end_waiting(r, EXPIRED) end
  elseif r.state == RUNNING and not is_extended(r) then
    judge_lapsed(r)
  end
end

local due = call('ZRANGE', P .. 'timers', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
if #due == 2 * most then more = 1 end
for i = 1, #due, 2 do
  if #ids == most or examined >= EXAMINED then
    more = 1
    break
  end
  if #due[i] == 16 then
    ids[#ids + 1] = due[i]
    scores[#ids] = tonumber(due[i + 1])
  else
    open_entry(due[i])
  end
end
load(ids)
for i = 1, #ids do
  local r = record(ids[i])
  if not r or r.deleted then
    if scores[i] then zrem('timers', ids[i]) end
  elseif scores[i] then
    judge_own(r, scores[i])
  else
    judge_shared(r, kinds[i])
  end
end
return {#ids, more, commit()}
