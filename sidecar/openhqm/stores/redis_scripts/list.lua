-- Ids of records by acceptance. ARGV[2]: lane, bits of the states wanted, seq to start after, most
-- records, most records to look at. Reply: the seq reached, 1 when there may be more, then ids.

local lane, states, after, limit, scan = unpack_('>BBdI4I4', ARGV[2])
local index = P .. LANES[lane] .. (states == 2 ^ FAILED and ':failed' or ':all')
local ids = call('ZRANGE', index, string.format('(%.0f', after), '+inf', 'BYSCORE', 'LIMIT', 0, scan)
load(ids)
local reply = {pack('>d', after), 1}
for i = 1, #ids do
  local r = records[ids[i]]
  if r then
    after = r.seq
    if band(states, 2 ^ r.state) ~= 0 then reply[#reply + 1] = r.id end
  end
  if #reply - 2 == limit then
    reply[1], reply[2] = pack('>d', after), (i < #ids or #ids == scan) and 1 or 0
    return reply
  end
end
reply[1], reply[2] = pack('>d', after), #ids == scan and 1 or 0
return reply
