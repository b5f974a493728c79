-- The usual lease: records of one priority, none overdue, nothing to give back and nothing delayed that
-- has come due. Goes before the libraries of lease.lua, which tells arguments and reply and sees to
-- every other call.

-- Of a meta, by place: deadline 9-16, state to claims 34-48, of these epoch 37-40; started_at 49-56.

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
  local meta_key, request_key = P .. 'm:', P .. 'q:'
  local keys, requests = {}, {}
  for i = 1, #ids do keys[i], requests[i] = meta_key .. ids[i], request_key .. ids[i] end
  local metas = call('MGET', unpack(keys))
  local now, ends = pack('>d', NOW), string.format('%.17g', NOW + lease_seconds)
  local epoch_of, running = {}, {} -- by state to claims of a waiting record
  local values, epochs = {}, {}
  local retrying = 0
  for i = 1, #ids do
    local meta = metas[i]
    local deadline = meta and unpack_('>d', meta, 9)
    if not meta or deadline > 0 and deadline <= NOW then return nil end
    local waiting = sub(meta, 34, 48)
    if string.byte(waiting) == 2 then retrying = retrying + 1 end
    if not running[waiting] then
      epoch_of[waiting] = pack('>I4', unpack_('>I4', waiting, 4) + 1)
      running[waiting] = '\1' .. sub(waiting, 2, 3) .. epoch_of[waiting] .. sub(waiting, 8) .. now
    end
    meta = sub(meta, 1, 33) .. running[waiting] .. sub(meta, 57)
    metas[i] = meta
    epochs[i] = epoch_of[waiting]
    values[2 * i - 1], values[2 * i] = keys[i], meta
  end
  local bodies, all = call('MGET', unpack(requests)), table.concat(ids)
  local taken = all .. table.concat(epochs)

  call('ZREMRANGEBYRANK', ready, 0, #ids - 1)
  call('MSET', unpack(values))
  call('ZADD', P .. 'timers', ends, LEASED .. taken)
  call('SET', taken_key, pack('>d', serial) .. taken, 'EX', math.ceil(lease_seconds) + 60)
  call('HINCRBY', counts, lane .. '.queued', retrying - #ids)
  if retrying > 0 then call('HINCRBY', counts, lane .. '.retrying', -retrying) end
  call('HINCRBY', counts, lane .. '.running', #ids)
  call('HINCRBY', counts, lane .. '.turn', #ids)
  call('PUBLISH', P .. 'changes', string.char(ALIKE, lane_code, 1) .. all)
  return {'', now, all, metas, bodies}
end

do
  if ARGV[4] then call('ZREM', P .. 'timers', unpack(ARGV, 4)) end
  local reply = lease_plainly()
  if reply then return reply end
end
