-- Records by acceptance. ARGV[2]: lane, bits of the states wanted, bits of what is wanted, seq to
-- start after, most records, most records to look at.
-- Reply: the seq reached, 1 when there may be more, then descriptions (see reading.lua).

local lane, states, want, after, limit, scan = unpack_('>BBBdI4I4', ARGV[2])
local index = P .. (states == 2 ^ FAILED and FAILURES or ALL)[lane]
local ids = call('ZRANGE', index, string.format('(%.0f', after), '+inf', 'BYSCORE', 'LIMIT', 0, scan)
load(ids)

local reply = {'', #ids == scan and 1 or 0}
for i = 1, #ids do
  local r = record(ids[i])
  if r then
    after = r.seq
    if band(states, 2 ^ r.state) ~= 0 then reply[#reply + 1] = describe(r, want) end
  end
  if #reply - 2 == limit then
    if i < #ids then reply[2] = 1 end
    break
  end
end
reply[1] = pack('>d', after)
return reply
