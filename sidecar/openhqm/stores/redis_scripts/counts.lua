-- Figures of lane ARGV[2]. Reply: flat fields of the counts hash, records delayed, and the ready_at
-- of the record first in line ("" when there is none).

local lane = ARGV[2]
local ready, delayed = P .. lane .. ':ready', P .. lane .. ':delayed'

local heads = call('ZRANGE', delayed, '-inf', NOW, 'BYSCORE', 'LIMIT', 0, 1)
for level = 0, 9 do
  local head = call('ZRANGE', ready, string.format('%.0f', level * LEVEL), string.format('(%.0f', (level + 1) * LEVEL),
    'BYSCORE', 'LIMIT', 0, 1)
  heads[#heads + 1] = head[1]
end
load(heads)
local oldest
for i = 1, #heads do
  local r = record(heads[i])
  if r and (not oldest or r.ready_at < oldest) then oldest = r.ready_at end
end
return {
  call('HGETALL', P .. 'counts'),
  call('ZCOUNT', delayed, string.format('(%.17g', NOW), '+inf'),
  oldest and pack('>d', oldest) or '',
}
