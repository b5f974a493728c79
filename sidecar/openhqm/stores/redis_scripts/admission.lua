-- Admission of new records, for accept.lua and arrive.lua. Follows life.lua.
-- ARGV[2..]: per record a header, its request, and what few records have.
-- header: id, flags, delay, not_before, max_age, deadline, priority, request bytes, LIFE, tail
-- extras: "" or fingerprint, blob name, callback

local HEADER, HEADER_SIZE, LIFE_SIZE = '>c16I2ddddBd', 59, 47
local EXTRAS = '>Bc0Bc0I4c0'

local figures = call('HMGET', P .. 'counts', 'requests.queued', 'requests.running', 'requests.retrying', 'bytes')
local backlog = (tonumber(figures[1]) or 0) + (tonumber(figures[2]) or 0) + (tonumber(figures[3]) or 0)
local bytes = tonumber(figures[4]) or 0
local seq = next_seq((#ARGV - 1) / 3)

-- Who holds a scope, and with which fingerprint.
local scopes = {}
local function holder(scope)
  return scopes[scope] or call('GET', P .. 'x:' .. scope)
end

-- Commit a record nobody knows. Returns "", 16 bytes of id when an existing one has its scope, or the slug
-- of a refusal.
local function admit(header, request, extras)
  local id, flags, delay, not_before, max_age, deadline, priority, size = unpack_(HEADER, header)
  local tail = sub(header, HEADER_SIZE + LIFE_SIZE + 1)
  local fingerprint, blob, callback = '', '', ''
  if extras ~= '' then fingerprint, blob, callback = unpack_(EXTRAS, extras) end
  local scope
  if fingerprint ~= '' then
    local _, found = unpack_(STRINGS, tail, STRINGS_AT)
    scope = found
    local held = holder(scope)
    if held then return sub(held, 17) == fingerprint and sub(held, 1, 16) or 'idempotency-mismatch' end
  end
  if backlog >= MAX_BACKLOG then return 'backlog-full' end
  if bytes + size + RESERVE > MAX_BYTES then return 'bytes-full' end
  if blob ~= '' and not keep_blob(blob) then return 'blob-gone' end
  if scope then
    scopes[scope] = id .. fingerprint
    put('x:' .. scope, scopes[scope])
  end
  if max_age > 0 and (deadline == 0 or NOW + max_age < deadline) then deadline = NOW + max_age end
  local ready_at = NOW + delay
  if not_before > ready_at then ready_at = not_before end
  local life = sub(header, HEADER_SIZE + 1, HEADER_SIZE + LIFE_SIZE)
  create(id, life, flags, ready_at, deadline, REQUESTS, seq, priority, size, tail)
  put('q:' .. id, request)
  if callback ~= '' then put('c:' .. id, callback) end
  seq = seq + 1
  backlog = backlog + 1
  bytes = bytes + size + RESERVE
  return ''
end
