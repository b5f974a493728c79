-- Hand out records to be published, in order of acceptance. ARGV[2]: most records, seconds nobody else
-- gets them.
-- Reply: seconds until the next of those in somebody's hand can be handed out again ("" when there is
-- none), the ids of the records, their metas and their requests.
--
-- A reply that is lost costs the wait for the end of its hold, and no record.

local limit, hold_seconds = unpack_('>I4d', ARGV[2])
local publishing, in_hand = P .. 'publishing', P .. 'in-hand'
local PUT_BACK, EXAMINED = 1000, 1000

if call('HGET', P .. 'counts', 'requests.paused') == '1' then limit = 0 end

-- Those nobody said `carried` of in time join the others, in their old place.
local due = call('ZRANGE', in_hand, '-inf', NOW, 'BYSCORE', 'LIMIT', 0, PUT_BACK)
if #due > 0 then
  load(due)
  local members = {}
  for i = 1, #due do
    local r = record(due[i])
    if r then
      members[#members + 1] = r.seq
      members[#members + 1] = r.id
    end
  end
  call('ZREM', in_hand, unpack(due))
  if #members > 0 then call('ZADD', publishing, unpack(members)) end
end

local ids, metas_, requests = {}, {}, {}
local examined = 0
while #ids < limit and examined < EXAMINED do
  local popped = pop(publishing, limit - #ids)
  if #popped == 0 then break end
  examined = examined + #popped
  load(popped)
  for i = 1, #popped do
    local r = record(popped[i])
    if r and r.deadline > 0 and r.deadline <= NOW then
      end_waiting(r, EXPIRED)
    elseif r then
      local nth = #ids + 1
      ids[nth], metas_[nth], requests[nth] = r.id, metas[r.id], P .. 'q:' .. r.id
      zadd('in-hand', NOW + hold_seconds, r.id)
    end
  end
end

local due_in, bodies = '', {}
if #ids > 0 then
  bodies = call('MGET', unpack(requests))
else
  local head = call('ZRANGE', in_hand, 0, 0, 'WITHSCORES')
  if head[2] then due_in = pack('>d', head[2] - NOW) end
end
commit()
return {due_in, table.concat(ids), metas_, bodies}
