-- A record as `read.lua` and `list.lua` reply it. Follows common.lua.

local WANT_ANSWER, WANT_REQUEST = 1, 2

local function part(r, flag, key)
  return has(r, flag) and call('GET', P .. key) or false
end

-- id, meta, rank among the ready, notes, request and answer as far as wanted; false for none
local function describe(r, want)
  return {
    r.id, encode(r),
    waiting(r) and call('ZRANK', P .. READY[r.lane], r.id),
    part(r, NOTED, 'n:' .. r.id),
    band(want, WANT_REQUEST) ~= 0 and part(r, REQUEST, 'q:' .. r.id),
    band(want, WANT_ANSWER) ~= 0 and part(r, ANSWER, answer_key(r)),
  }
end
