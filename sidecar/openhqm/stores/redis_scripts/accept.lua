-- Commit new records. Arguments are told in admission.lua.
-- Reply: per record "" for accepted, 16 bytes of id for an existing one, or the slug of a refusal.

local metas = {}
for i = 2, #ARGV, 3 do metas[#metas + 1] = P .. 'm:' .. sub(ARGV[i], 1, 16) end
local none_held = call('EXISTS', unpack(metas)) == 0

local seen = {}
local function is_held(id)
  return seen[id] or (not none_held and call('EXISTS', P .. 'm:' .. id) == 1)
end

local function accept(header, request, extras)
  local id = sub(header, 1, 16)
  if is_held(id) then return '' end
  local reply = admit(header, request, extras)
  seen[id] = reply == ''
  return reply
end

local replies = {}
for i = 2, #ARGV, 3 do replies[#replies + 1] = accept(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
commit()
return replies
