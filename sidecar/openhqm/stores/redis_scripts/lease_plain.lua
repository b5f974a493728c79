-- The usual lease: records of one priority, none overdue, nothing to give back and nothing delayed that
-- has come due. Goes before the libraries of lease.lua, which tells arguments and reply and sees to
-- every other call.

-- Of a meta, by place: deadline 9-16, state 34, flags 35-36, epoch 37-40, attempts and claims 41-48,
-- started_at 49-56.

-- Reply, or nil when the call is not of this kind; nothing was written then.
local function lease_plainly()
  local lane_code, limit, lease_seconds, serial, heard = unpack_('>BI4ddd', ARGV[2])
  local lane = lane_code == REQUESTS and 'requests' or 'callbacks'
  local ready, counts, taken_key = P .. lane .. ':ready', P .. 'counts', P .. 'taken:' .. ARGV[3]
  local before = call('GET', taken_key)
  if limit == 0 or serial > heard + 1 or before and unpack_('>d', before) > heard then return nil end
  if call('HGET', counts, lane .. '.paused') == '1' then return nil end
  if call('ZCOUNT', P .. lane .. ':delayed', '-inf', NOW) > 0 then return nil end
  local first = call('ZRANGE', ready, 0, 0, 'WITHSCORES')
  local last = call('ZRANGE', ready, -1, -1, 'WITHSCORES')
  if #first == 0 or math.floor(first[2] / LEVEL) ~= math.floor(last[2] / LEVEL) then return nil end

  local ids = call('ZRANGE', ready, 0, limit - 1)
  local keys, requests = {}, {}
  for i = 1, #ids do keys[i], requests[i] = P .. 'm:' .. ids[i], P .. 'q:' .. ids[i] end
  local metas = call('MGET', unpack(keys))
  local now, ends, told = pack('>d', NOW), NOW + lease_seconds, string.char(lane_code, 1, 0)
  local values, timers, taken, changes, reply = {}, {}, {pack('>d', serial)}, {'\0'}, {'', now}
  local retrying = 0
  for i = 1, #ids do
    local id, meta = ids[i], metas[i]
    local deadline = meta and unpack_('>d', meta, 9)
    if not meta or deadline > 0 and deadline <= NOW then return nil end
    if string.byte(meta, 34) == 2 then retrying = retrying + 1 end
    local epoch = pack('>I4', unpack_('>I4', meta, 37) + 1)
    meta = sub(meta, 1, 33) .. '\1' .. sub(meta, 35, 36) .. epoch .. sub(meta, 41, 48) .. now .. sub(meta, 57)
    local at = 2 * i
    values[at - 1], values[at] = keys[i], meta
    timers[at - 1], timers[at] = ends, id
    taken[at], taken[at + 1] = id, epoch
    changes[at], changes[at + 1] = id, told
    reply[3 * i], reply[3 * i + 1] = id, meta
  end
  local bodies = call('MGET', unpack(requests))
  for i = 1, #ids do reply[3 * i + 2] = bodies[i] end

  call('ZREMRANGEBYRANK', ready, 0, #ids - 1)
  call('MSET', unpack(values))
  call('ZADD', P .. 'timers', unpack(timers))
  call('SET', taken_key, table.concat(taken), 'EX', math.ceil(lease_seconds) + 60)
  call('HINCRBY', counts, lane .. '.queued', retrying - #ids)
  if retrying > 0 then call('HINCRBY', counts, lane .. '.retrying', -retrying) end
  call('HINCRBY', counts, lane .. '.running', #ids)
  call('HINCRBY', counts, lane .. '.turn', #ids)
  call('PUBLISH', P .. 'changes', table.concat(changes))
  return reply
end

do
  local reply = lease_plainly()
  if reply then return reply end
end
