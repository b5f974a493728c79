-- Commit new records. ARGV[2..]: per record a header and its request.
-- header: id, flags, delay, not_before, max_age, deadline, fingerprint, blob name, callback, rest
-- Reply: per record "" for accepted, 16 bytes of id for an existing one, or the slug of a refusal.

local figures = call('HMGET', P .. 'counts', 'requests.queued', 'requests.running', 'requests.retrying', 'bytes')
local backlog = (tonumber(figures[1]) or 0) + (tonumber(figures[2]) or 0) + (tonumber(figures[3]) or 0)
local bytes = tonumber(figures[4]) or 0
local first_backlog = backlog
local seq = next_seq((#ARGV - 1) / 2)

local metas = {}
for i = 2, #ARGV, 2 do metas[#metas + 1] = P .. 'm:' .. sub(ARGV[i], 1, 16) end
local none_held = call('EXISTS', unpack(metas)) == 0

local function is_held(id)
  return records[id] or (not none_held and call('EXISTS', P .. 'm:' .. id) == 1)
end

-- Who holds the scope of *rest*, and with which fingerprint.
local scopes = {}
local function holder(scope)
  return scopes[scope] or call('GET', P .. 'x:' .. scope)
end

local function accept(header, request)
  local id, flags, delay, not_before, max_age, deadline, fingerprint, blob, callback, at =
    unpack_('>c16I2ddddBc0Bc0I4c0', header)
  if is_held(id) then return '' end
  local rest = sub(header, at)
  local lane, priority, _, max_claims, size = unpack_('>' .. FIXED, rest)
  local scope
  if band(flags, SCOPED) ~= 0 then
    local _, found = unpack_(STRINGS, rest, STRINGS_AT)
    scope = found
    local held = holder(scope)
    if held then return sub(held, 17) == fingerprint and sub(held, 1, 16) or 'idempotency-mismatch' end
  end
  if backlog >= MAX_BACKLOG then return 'backlog-full' end
  if bytes + size + RESERVE > MAX_BYTES then return 'bytes-full' end
  if blob ~= '' and not keep_blob(blob) then return 'blob-gone' end
  if scope then
    scopes[scope] = id .. fingerprint
    put('x:' .. scope, id .. fingerprint)
  end
  if max_age > 0 and (deadline == 0 or NOW + max_age < deadline) then deadline = NOW + max_age end
  local ready_at = NOW + delay
  if not_before > ready_at then ready_at = not_before end
  local r = create(id, flags, ready_at, deadline, seq, lane, priority, size, rest)
  r.max_claims = max_claims
  put('q:' .. id, request)
  if callback ~= '' then put('c:' .. id, callback) end
  seq = seq + 1
  backlog = backlog + 1
  bytes = bytes + size + RESERVE
  return ''
end

local replies = {}
for i = 2, #ARGV, 2 do replies[#replies + 1] = accept(ARGV[i], ARGV[i + 1]) end
count(REQUESTS, 'accepted', backlog - first_backlog)
count(REQUESTS, 'queued', backlog - first_backlog)
commit()
return replies
