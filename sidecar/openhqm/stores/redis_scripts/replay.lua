-- Accept dead letters anew. ARGV[2..]: per replay old id, new id, max age, 1 for through a broker.
-- Reply: per replay 1 or 0.

-- TERMS and strings of *r*, less what follows them, with its scope gone and *replay_of* set.
local function inherit(r)
  local key, _, parent = strings(r)
  return sub(r.rest, 1, STRINGS_AT - 1)
    .. pack('>I2c0BBc0Bc0', #key, key, 0, #parent, parent, #r.id, r.id)
end

local made = {}
local function replay(old_id, new_id, max_age, outbound)
  local old, new = record(old_id), record(new_id)
  if made[new_id] then return made[new_id] == old_id and 1 or 0 end
  if new then
    local _, _, _, replay_of = strings(new)
    return replay_of == old_id and 1 or 0
  end
  if not old or old.state ~= FAILED or has(old, REPLAYED) or not has(old, REQUEST) then return 0 end
  local flags = band(old.flags, KEYED + CALLBACK + OWNS_REQUEST_BLOB) + outbound * PUBLISHING
  local deadline = max_age > 0 and NOW + max_age or 0
  local priority, _, _, size = terms(old)
  create(new_id, birth(flags, size), flags, NOW, deadline, old.lane, next_seq(1), priority, size, inherit(old))
  put('q:' .. new_id, call('GET', P .. 'q:' .. old_id))
  if has(old, CALLBACK) then put('c:' .. new_id, call('GET', P .. 'c:' .. old_id)) end
  made[new_id] = old_id
  count(old.lane, 'replayed', 1)
  count(old.lane, 'dead', -1)
  set(old, REPLAYED)
  old.rest = old.rest .. new_id
  clear(old, OWNS_REQUEST_BLOB)
  change(old)
  return 1
end

local replies = {}
for i = 2, #ARGV do replies[#replies + 1] = replay(unpack_('>c16c16dB', ARGV[i])) end
commit()
return replies
