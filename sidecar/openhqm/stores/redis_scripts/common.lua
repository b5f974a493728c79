-- The layout of the keys, the record codec, and one unit of work. Follows prelude.lua; most scripts go
-- on with life.lua.
--
-- A script loads the records it needs, changes them as tables, and calls commit() once, which
-- writes everything in a handful of commands, so that each key is touched once for a batch.
--
-- KEYS[1] is the prefix "openhqm:{queue}:"; all keys of a queue share its hash slot. Under it:
--   m:<id>       meta of a record (see below)
--   q:<id>       its request       a:<id>  its answer       c:<id>  the callback to be sent
--                (a BRIEF record has its answer as q:<id>)
--   n:<id>       attempt notes     x:<scope>  id and fingerprint that hold an idempotency scope
--   blob:<name>  a list of chunks; expires until a record that names it is committed
--   garbage      names of blobs kept elsewhere that no record needs any more; sweep deletes them
--   line:<key>   ids of unfinished records of an ordering key, by seq; only its head may run
--   counts       hash: seq, bytes, and per lane the figures of `Counts`
--   taken:<caller>  serial of a process's last lease call that took records, and what it took
--   timers       records by the time sweep has to look at them: deadline of those that wait and have
--                one, end of the lease of those that run, expiry of final ones. Those that are alike
--                share an entry, which is never changed: DATED and ids of an accept call; LEASED, ids and
--                epochs of a lease call; ENDED and ids of a settle call. It is for those it still holds
--                for; a record may have an entry of its own besides, for its deadline or an extended
--                lease. redis_timers.py tells which entries of leases are of no use any more
--   <lane>:ready by priority and seq   <lane>:delayed by ready_at
--   <lane>:all   by seq                <lane>:failed  by seq
--   publishing   by seq, those a broker is to carry and nobody has in hand; `Store.outbound`
--   in-hand      those that were handed out, by when they are to be handed out again
--
-- ARGV[1] holds the options of the calling process.

local band, bor, bnot = bit.band, bit.bor, bit.bnot

local QUEUED, RUNNING, RETRYING, DONE, FAILED, CANCELLED, EXPIRED = 0, 1, 2, 3, 4, 5, 6
local STATES = {[0] = 'queued', 'running', 'retrying', 'done', 'failed', 'cancelled', 'expired'}
local LANES = {[0] = 'requests', 'callbacks'}
local READY = {[0] = 'requests:ready', 'callbacks:ready'}
local DELAYED = {[0] = 'requests:delayed', 'callbacks:delayed'}
local ALL = {[0] = 'requests:all', 'callbacks:all'}
local FAILURES = {[0] = 'requests:failed', 'callbacks:failed'}
local REPEAT = 0

-- Flags of a record. OWNS_*: the blob is deleted with this record.
local CANCEL_REQUESTED, CALLBACK, OWNS_REQUEST_BLOB, OWNS_ANSWER_BLOB = 1, 2, 4, 8
local ANSWER, REPLAYED, NOTED, REQUEST = 16, 32, 64, 128
local KEYED, BLOCKED, SCOPED = 256, 512, 1024
local BRIEF = 2048 -- ended as settle_plain.lua does it
-- Away: a broker is to carry the request, or does. Queued, and in none of the lane's ready and delayed sets.
local PUBLISHING, CARRIED = 4096, 8192

-- A record's meta is PLACE, LIFE, TERMS and strings. PLACE and TERMS are written once, but for
-- ready_at, and for the request bytes of what goes away and comes back. LIFE: state, flags, epoch,
-- attempts, claims, started_at, finished_at, expires_at, bytes held. TERMS: priority, on_lost,
-- max_claims, request bytes. The strings: key, scope, parent, replay_of, each with its length; then the
-- reason of a final record (of a BRIEF one, which has none, its note); then the id of the replay of a
-- REPLAYED one.
local LIFE = 'BI2I4I4I4dddd'
local FIXED, FIXED_SIZE = PLACE .. LIFE, 80
local TERMS, REQUEST_BYTES_AT = '>BBI4d', 7
local STRINGS, STRINGS_AT = '>I2c0Bc0Bc0Bc0', 15

local metas, records = {}, {} -- as read, and as tables for those that were looked into
local dirty = {}
local values, removed, changes, garbage = {}, {}, {}, {}
local deltas, bytes_delta = {[0] = {}, {}}, 0
local added, taken = {}, {}
local wake = 0 -- bit per lane that has something to lease, and TO_PUBLISH
local TO_PUBLISH = 4

local function has(r, flag)
  return band(r.flags, flag) ~= 0
end

local function set(r, flag)
  r.flags = bor(r.flags, flag)
end

local function clear(r, flag)
  r.flags = band(r.flags, bnot(flag))
end

local function waiting(r)
  return r.state == QUEUED or r.state == RETRYING
end

local function away(r)
  return has(r, PUBLISHING + CARRIED)
end

local function count(lane, name, delta)
  local figures = deltas[lane]
  figures[name] = (figures[name] or 0) + delta
end

-- ZADD and ZREM of a batch, gathered by key. Adding comes first, so a record that enters and
-- leaves a set within one script is not in it.
local function zadd(key, score, id)
  local set_ = added[key]
  if not set_ then
    set_ = {}
    added[key] = set_
  end
  set_[#set_ + 1] = score
  set_[#set_ + 1] = id
end

local function zrem(key, id)
  local set_ = taken[key]
  if not set_ then
    set_ = {}
    taken[key] = set_
  end
  set_[#set_ + 1] = id
end

local function put(key, value)
  values[#values + 1] = P .. key
  values[#values + 1] = value
end

local function remove(key)
  removed[#removed + 1] = P .. key
end

local function change(r)
  if not r.dirty then
    r.dirty = true
    dirty[#dirty + 1] = r
  end
end

local function notify(r, reason)
  changes[#changes + 1] = pack('>c16BBBc0', r.id, r.lane, r.state, #reason, reason)
end

local function hold(r, bytes)
  bytes_delta = bytes_delta + bytes - r.held
  r.held = bytes
end

local function decode(id, meta)
  local ready_at, deadline, lane, accepted_at, seq, state, flags, epoch, attempts, claims, started_at,
    finished_at, expires_at, held = unpack_(FIXED, meta)
  return {
    id = id, ready_at = ready_at, deadline = deadline, lane = lane, accepted_at = accepted_at, seq = seq,
    state = state, flags = flags, epoch = epoch, attempts = attempts, claims = claims,
    started_at = started_at, finished_at = finished_at, expires_at = expires_at, held = held,
    rest = sub(meta, FIXED_SIZE + 1), dirty = false,
  }
end

local function encode(r)
  return pack(FIXED, r.ready_at, r.deadline, r.lane, r.accepted_at, r.seq, r.state, r.flags, r.epoch,
    r.attempts, r.claims, r.started_at, r.finished_at, r.expires_at, r.held) .. r.rest
end

-- priority, on_lost, max_claims, request bytes
local function terms(r)
  return unpack_(TERMS, r.rest)
end

-- Count a request of *size*, 0 for none, in place of the one there was.
local function resize_request(r, size)
  local _, _, _, before = terms(r)
  hold(r, r.held - before + size)
  r.rest = sub(r.rest, 1, REQUEST_BYTES_AT - 1) .. pack('>d', size) .. sub(r.rest, STRINGS_AT)
end

-- key, scope, parent, replay_of; each "" when there is none
local function strings(r)
  return unpack_(STRINGS, r.rest, STRINGS_AT)
end

-- Where the answer is.
local function answer_key(r)
  return (has(r, BRIEF) and 'q:' or 'a:') .. r.id
end

-- Score in a ready set.
local function rank(r)
  return (9 - terms(r)) * LEVEL + r.seq
end

-- Read the metas of many records at once; those not held are false.
local function load(ids)
  local missing, keys = {}, {}
  for i = 1, #ids do
    if metas[ids[i]] == nil then
      missing[#missing + 1] = ids[i]
      keys[#keys + 1] = P .. 'm:' .. ids[i]
    end
  end
  if #keys > 0 then
    local found = call('MGET', unpack(keys))
    for i = 1, #missing do metas[missing[i]] = found[i] end
  end
end

-- A record as a table, nil when it is not held.
local function record(id)
  local r = records[id]
  if not r then
    if metas[id] == nil then load({id}) end
    if not metas[id] then return nil end
    r = decode(id, metas[id])
    records[id] = r
  end
  return r
end

-- Take up to *many* members out of a set, those of the least scores; returns them.
local function pop(key, many)
  local popped = call('ZPOPMIN', key, many)
  local ids = {}
  for i = 1, #popped, 2 do ids[#ids + 1] = popped[i] end
  return ids
end

-- Write everything; tell other processes. Returns the changes as they were published.
local function commit()
  for i = 1, #dirty do
    local r = dirty[i]
    if not r.deleted then put('m:' .. r.id, encode(r)) end
  end
  if #values > 0 then call('MSET', unpack(values)) end
  if #removed > 0 then call('UNLINK', unpack(removed)) end
  if #garbage > 0 then call('SADD', P .. 'garbage', unpack(garbage)) end
  for key, members in pairs(added) do call('ZADD', P .. key, unpack(members)) end
  for key, members in pairs(taken) do call('ZREM', P .. key, unpack(members)) end
  if bytes_delta ~= 0 then call('HINCRBY', P .. 'counts', 'bytes', bytes_delta) end
  for lane, figures in pairs(deltas) do
    for name, delta in pairs(figures) do
      if delta ~= 0 then call('HINCRBY', P .. 'counts', LANES[lane] .. '.' .. name, delta) end
    end
  end
  local told = table.concat(changes)
  if wake > 0 or #changes > 0 then call('PUBLISH', P .. 'changes', string.char(wake) .. told) end
  return told
end
