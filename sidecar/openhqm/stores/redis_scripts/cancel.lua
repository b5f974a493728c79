-- Cancel ARGV[2]: at once when it waits, by asking its runner when it runs. Reply: 1 when held.

local r = record(ARGV[2])
if not r then return 0 end
if waiting(r) then
  end_waiting(r, CANCELLED)
elseif r.state == RUNNING then
  set(r, CANCEL_REQUESTED)
  change(r)
end
commit()
return 1
