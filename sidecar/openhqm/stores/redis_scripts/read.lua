-- Read records. ARGV[2]: bits of what is wanted (see reading.lua); ARGV[3..]: ids.
-- Reply: per record its description, nothing when it is not held.

local ids, replies = {}, {}
for i = 3, #ARGV do ids[i - 2] = ARGV[i] end
load(ids)
for i = 1, #ids do
  local r = record(ids[i])
  replies[i] = r and describe(r, tonumber(ARGV[2])) or false
end
return replies
