-- What every script starts with: where the keys are, the limits, the time, and the layout of a meta.
-- The layout is told in common.lua.

local P = KEYS[1]
local call, pack, unpack_, sub = redis.call, struct.pack, struct.unpack, string.sub

local MAX_BACKLOG, MAX_BYTES, RESERVE, ANSWER_TTL, DEAD_TTL, BLOBS_ELSEWHERE = unpack_('>dddddB', ARGV[1])
local TIME = call('TIME')
local NOW = tonumber(TIME[1]) + tonumber(TIME[2]) / 1000000

local REQUESTS, CALLBACKS = 0, 1
-- First byte of an entry of timers that stands for many records.
local DATED, LEASED, ENDED = 'D', 'L', 'E'
local ALIKE = 64 -- first byte of a notice that some ids of one lane have one new state

-- ready_at, deadline (0: none), lane, accepted_at, seq
local PLACE = '>ddBdd'

-- Priority decides before seq: a level is wider than any seq.
local LEVEL = 2 ^ 48
