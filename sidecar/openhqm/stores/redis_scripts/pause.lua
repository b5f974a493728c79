-- Stop or resume leasing, and with that of requests publishing. ARGV[2]: lane, ARGV[3]: 1 to pause.

local lane = tonumber(ARGV[2])
call('HSET', P .. 'counts', LANES[lane] .. '.paused', ARGV[3])
if ARGV[3] == '0' then wake = 2 ^ lane + (lane == REQUESTS and TO_PUBLISH or 0) end
commit()
return 1
