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

local EXAMINED = 2048 -- most records looked for in entries of leases, nearly all of which have been settled

local ids, kinds = {}, {} -- the records to look at, and the kind of their entry; nil for one of its own
local examined, more = 0, 0

-- Ids and epochs of those that still run under the lease call of *entry* and have no timer of their own.
-- Of a meta, by place: state 34, epoch 37-40.
local function still_leased(entry)
  local many, all, members, epochs = (#entry - 1) / 20, {}, {}, {}
  for i = 1, many do all[i] = sub(entry, 16 * i - 14, 16 * i + 1) end
  load(all)
  for i = 1, many do
    local meta, epoch = metas[all[i]], sub(entry, 16 * many + 4 * i - 2, 16 * many + 4 * i + 1)
    if meta and string.byte(meta, 34) == RUNNING and sub(meta, 37, 40) == epoch
      and not call('ZSCORE', P .. 'timers', all[i]) then
      members[#members + 1], epochs[#epochs + 1] = all[i], epoch
    end
  end
  examined = examined + many
  return table.concat(members), table.concat(epochs)
end

-- Note the records of a shared entry, as many as may be looked at; the others get a new one.
local function open_entry(entry)
  local kind, members, epochs = sub(entry, 1, 1), sub(entry, 2), ''
  if kind == LEASED then members, epochs = still_leased(entry) end
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

local due = call('ZRANGE', P .. 'timers', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, most)
if #due == most then more = 1 end
for i = 1, #due do
  if #ids == most or examined >= EXAMINED then
    more = 1
    break
  end
  if #due[i] == 16 then ids[#ids + 1] = due[i] else open_entry(due[i]) end
end
load(ids)
for i = 1, #ids do
  local id, kind, r = ids[i], kinds[i], record(ids[i])
  if not r or r.deleted then
    if not kind then zrem('timers', id) end
  elseif r.state >= DONE then
    if r.expires_at <= NOW then
      delete(r)
    elseif not kind then
      zadd('timers', r.expires_at, id) -- of an extended lease, left by settle_plain.lua
    end
  elseif kind ~= ENDED and r.state == RUNNING then
    judge_lapsed(r)
  elseif not kind then
    step_out(r)
    finish(r, EXPIRED, '', 0)
  end
end
return {#ids, more, commit()}
