-- Take due records. ARGV[2]: lane, most records, lease seconds, serial of this call, serial of the
-- caller's last call whose reply was heard. ARGV[3]: the caller; ARGV[4..]: entries of timers of lease
-- calls all of whose records the caller's process has settled.
-- Reply: seconds until the next delayed record is due ("" when none is), the time, the ids of the
-- leases, their metas and their requests.
--
-- What an unheard call took nobody holds: it is given back, unsent, by the caller's next call. That
-- older call may also still be on its way; it comes with a lower serial then, and takes nothing.

local lane_code, limit, lease_seconds, serial, heard = unpack_('>BI4ddd', ARGV[2])
local lane = LANES[lane_code]
local ready, delayed = P .. READY[lane_code], P .. DELAYED[lane_code]
local PROMOTED, EXAMINED = 1000, 1000

local function give_back(taken)
  local ids, epochs = {}, {}
  local many = (#taken - 8) / 20
  for i = 1, many do
    ids[i] = sub(taken, 16 * i - 7, 16 * i + 8)
    epochs[i] = unpack_('>I4', taken, 16 * many + 4 * i + 5)
  end
  load(ids)
  for i = 1, #ids do
    local r = record(ids[i])
    if r and r.state == RUNNING and r.epoch == epochs[i] then
      if has(r, CANCEL_REQUESTED) then finish(r, CANCELLED, '', 0) else wait_again(r, NOW) end
    end
  end
end

local taken_key = P .. 'taken:' .. ARGV[3]
local before = call('GET', taken_key)
if before then
  local last = unpack_('>d', before)
  if last >= serial then return {'', pack('>d', NOW), '', {}, {}} end
  if last > heard then give_back(before) end
end

local state = call('HMGET', P .. 'counts', lane .. '.paused', lane .. '.turn')
if state[1] == '1' then limit = 0 end
local turn = tonumber(state[2]) or 0

-- Records whose time has come join the ready ones, in their old place.
local due = call('ZRANGE', delayed, '-inf', NOW, 'BYSCORE', 'LIMIT', 0, PROMOTED)
if #due > 0 then
  load(due)
  local members = {}
  for i = 1, #due do
    local r = record(due[i])
    if r then
      members[#members + 1] = rank(r)
      members[#members + 1] = r.id
    end
  end
  call('ZREM', delayed, unpack(due))
  if #members > 0 then call('ZADD', ready, unpack(members)) end
end

-- The record accepted first among the heads of all priorities; taken out of the ready set.
local function take_oldest()
  local oldest, least
  for level = 0, 9 do
    local floor = level * LEVEL
    local head = call('ZRANGE', ready, string.format('%.0f', floor), string.format('(%.0f', floor + LEVEL),
      'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    if head[1] and (not least or tonumber(head[2]) - floor < least) then
      oldest, least = head[1], tonumber(head[2]) - floor
    end
  end
  call('ZREM', ready, oldest)
  return {oldest}
end

-- Up to *many* ids in the order they are to run; every eighth turn is the oldest record's.
local function take(many)
  local first = call('ZRANGE', ready, 0, 0, 'WITHSCORES')
  if #first == 0 then return {} end
  local last = call('ZRANGE', ready, -1, -1, 'WITHSCORES')
  if math.floor(first[2] / LEVEL) == math.floor(last[2] / LEVEL) then return pop(ready, many) end
  if turn % 8 == 7 then return take_oldest() end
  return pop(ready, math.min(many, 7 - turn % 8))
end

local leases, requests = {}, {}
local examined = 0
while #leases < limit and examined < EXAMINED do
  local ids = take(limit - #leases)
  if #ids == 0 then break end
  examined = examined + #ids
  turn = turn + #ids
  load(ids)
  for i = 1, #ids do
    local r = record(ids[i])
    if r and r.deadline > 0 and r.deadline <= NOW then
      finish(r, EXPIRED, '', 0)
    elseif r then
      move(r, RUNNING)
      r.epoch = r.epoch + 1
      r.started_at = NOW
      zadd('timers', NOW + lease_seconds, r.id)
      notify(r, '')
      leases[#leases + 1] = r
      requests[#requests + 1] = P .. 'q:' .. r.id
    end
  end
end

if #leases > 0 or serial > heard + 1 then
  local taken = {pack('>d', serial)} -- then all ids, then all epochs
  for i = 1, #leases do
    taken[i + 1] = leases[i].id
    taken[#leases + i + 1] = pack('>I4', leases[i].epoch)
  end
  call('SET', taken_key, table.concat(taken), 'EX', math.ceil(lease_seconds) + 60)
end

local due_in, ids, metas_, bodies = '', {}, {}, {}
if #leases > 0 then
  count(lane_code, 'turn', turn - (tonumber(state[2]) or 0))
  bodies = call('MGET', unpack(requests))
  for i = 1, #leases do ids[i], metas_[i] = leases[i].id, encode(leases[i]) end
else
  local head = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if head[2] then due_in = pack('>d', head[2] - NOW) end
end
commit()
return {due_in, pack('>d', NOW), table.concat(ids), metas_, bodies}
