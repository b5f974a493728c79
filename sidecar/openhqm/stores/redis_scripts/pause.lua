-- Stop or resume leasing. ARGV[2]: lane, ARGV[3]: 1 to pause.

local lane = tonumber(ARGV[2])
call('HSET', P .. 'counts', LANES[lane] .. '.paused', ARGV[3])
if ARGV[3] == '0' then wake = 2 ^ lane end
commit()
return 1
