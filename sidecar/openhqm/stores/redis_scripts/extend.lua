-- Renew leases. ARGV[2]: lease seconds; then per lease id and epoch.
-- Reply: per lease 0 lost, 1 held, 2 held and asked to cancel.

local ends = NOW + unpack_('>d', ARGV[2])
local ids, epochs, replies = {}, {}, {}
for i = 3, #ARGV do ids[i - 2], epochs[i - 2] = unpack_('>c16I4', ARGV[i]) end
load(ids)
for i = 1, #ids do
  local r = record(ids[i])
  if r and r.state == RUNNING and r.epoch == epochs[i] then
    -- Not at its deadline: sweep.lua would take the entry for that.
    zadd('timers', ends == r.deadline and ends + 0.001 or ends, r.id)
    replies[i] = has(r, CANCEL_REQUESTED) and 2 or 1
  else
    count(r and r.lane or REQUESTS, 'stale', 1)
    replies[i] = 0
  end
end
commit()
return replies
