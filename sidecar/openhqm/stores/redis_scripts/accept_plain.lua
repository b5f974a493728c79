-- Commit new records of the ordinary kind: no key, scope, callback, blob or wish about time, one
-- priority and one max age for all. ARGV[2]: max age, priority, bytes of all requests; ARGV[3]: their
-- ids; then per record LIFE with TERMS and strings, and its request.
-- Reply: 1, or 0 when a limit or an id in use needs accept.lua to look at each; nothing was written.
--
-- Most requests come this way. It needs no library, decides once for all and makes hardly more strings
-- per record than are stored: the server takes 8 us per record, 13 in accept.lua.

local max_age, priority, bytes = unpack_('>dBd', ARGV[2])
local ids = ARGV[3]
local many = #ids / 16

local figures = call('HMGET', P .. 'counts', 'requests.queued', 'requests.running', 'requests.retrying', 'bytes',
  'seq')
local backlog = (tonumber(figures[1]) or 0) + (tonumber(figures[2]) or 0) + (tonumber(figures[3]) or 0)
bytes = bytes + many * RESERVE
if backlog + many > MAX_BACKLOG or (tonumber(figures[4]) or 0) + bytes > MAX_BYTES then return 0 end

local seq = tonumber(figures[5]) or 0
local deadline = max_age > 0 and NOW + max_age or 0
local level = (9 - priority) * LEVEL
local place = sub(pack(PLACE, NOW, deadline, REQUESTS, NOW, 0), 1, -9) -- less seq
local values, all, ready = {}, {}, {}
for i = 1, many do
  local id = sub(ids, 16 * i - 15, 16 * i)
  local meta = P .. 'm:' .. id
  local at, nth = 2 * i, seq + i
  values[2 * at - 3], values[2 * at - 2] = meta, place .. pack('>d', nth) .. ARGV[at + 2]
  values[2 * at - 1], values[2 * at] = P .. 'q:' .. id, ARGV[at + 3]
  all[at - 1], all[at] = nth, id
  ready[at - 1], ready[at] = level + nth, id
end
-- An id in use has its meta, and then this writes nothing: asked on its own that takes 1.3 us per record.
if call('MSETNX', unpack(values)) == 0 then return 0 end
call('ZADD', P .. 'requests:all', unpack(all))
call('ZADD', P .. 'requests:ready', unpack(ready))
if deadline > 0 then call('ZADD', P .. 'timers', deadline, DATED .. ids) end
call('HINCRBY', P .. 'counts', 'seq', many)
call('HINCRBY', P .. 'counts', 'requests.accepted', many)
call('HINCRBY', P .. 'counts', 'requests.queued', many)
call('HINCRBY', P .. 'counts', 'bytes', bytes)
call('PUBLISH', P .. 'changes', string.char(2 ^ REQUESTS))
return 1
