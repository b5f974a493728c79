-- Take in what a broker delivered. Arguments are told in admission.lua.
-- Reply: per record what became of it: a word of `Arrival`, or the slug of a refusal.

local brought = {} -- by id: the blob of what this call took in, "" for none

local function come_back(r, request, size, blob)
  if blob ~= '' and not keep_blob(blob) then return 'blob-gone' end
  drop_owned_blob(r, OWNS_REQUEST_BLOB, 'q:')
  put('q:' .. r.id, request)
  clear(r, OWNS_REQUEST_BLOB)
  set(r, blob ~= '' and REQUEST + OWNS_REQUEST_BLOB or REQUEST)
  resize_request(r, size)
  set_stage(r, 0)
  if has(r, KEYED) then block(r) end
  line_up(r)
  return 'returned'
end

-- A second copy of what is here, or of what has come with this call.
local function forget(r, id, blob)
  if blob ~= '' and blob ~= (brought[id] or owned_blob(r, OWNS_REQUEST_BLOB, 'q:')) then drop_blob(blob) end
  return 'known'
end

local function arrive(header, request, extras)
  local id, _, _, _, _, deadline, _, size = unpack_(HEADER, header)
  local blob = ''
  if extras ~= '' then
    local _, named = unpack_(EXTRAS, extras)
    blob = named
  end
  local r = record(id)
  local reply
  if brought[id] or r and not away(r) then return forget(r, id, blob) end
  if r then
    reply = come_back(r, request, size, blob)
  elseif deadline > 0 and deadline <= NOW then
    reply = 'too-late'
  else
    reply = admit(header, request, extras)
    if reply == '' then reply = 'taken-in' end
  end
  if reply == 'returned' or reply == 'taken-in' then brought[id] = blob end
  return reply
end

local ids, replies = {}, {}
for i = 2, #ARGV, 3 do ids[#ids + 1] = sub(ARGV[i], 1, 16) end
load(ids)
for i = 2, #ARGV, 3 do replies[#replies + 1] = arrive(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
commit()
return replies
