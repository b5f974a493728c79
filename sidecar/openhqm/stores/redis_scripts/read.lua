-- Read records. ARGV[2]: want (1 answers, 2 requests); ARGV[3..]: ids.
-- Reply: per record nothing, or id, meta, rank in the ready set, notes, request, answer.

local want = tonumber(ARGV[2])

local function part(wanted, r, flag, key)
  return wanted and has(r, flag) and call('GET', P .. key .. r.id) or false
end

local ids, replies = {}, {}
for i = 3, #ARGV do ids[i - 2] = ARGV[i] end
load(ids)
for i = 1, #ids do
  local r = records[ids[i]]
  replies[i] = r and {
    r.id, encode(r), waiting(r) and call('ZRANK', P .. LANES[r.lane] .. ':ready', r.id),
    part(true, r, NOTED, 'n:'), part(band(want, 2) ~= 0, r, REQUEST, 'q:'), part(band(want, 1) ~= 0, r, ANSWER, 'a:'),
  } or false
end
return replies
