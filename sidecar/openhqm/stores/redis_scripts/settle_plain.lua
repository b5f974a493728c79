-- Apply the usual batch of results: answers, for requests that nothing hangs on and nobody wants
-- cancelled. ARGV[2]: ids; ARGV[3]: epochs; ARGV[4]: bytes of each answer; ARGV[5]: of all; then per
-- settlement the note and the answer.
-- Reply: 1 applied, or 0 when settle.lua must look at each; nothing was written then.
--
-- Most results come this way, and most of what they cost here is strings made. So what is alike is made
-- once, and a record that ends so is BRIEF: its answer takes the place of its request, and the note goes
-- with the meta.

-- Of a meta, by place: lane 17, state, flags, epoch and attempts 34-44, held 73-80, TERMS 81.
local RUNNING_PLAIN, DONE_BRIEF = string.char(1, 0, 128), string.char(3, 8, 16) -- state and flags
local META, REQUEST_KEY = P .. 'm:', P .. 'q:'

local ids, epochs, sizes = ARGV[2], ARGV[3], ARGV[4]
local many = #ids / 16
local members, keys = {}, {}
for i = 1, many do
  local id = sub(ids, 16 * i - 15, 16 * i)
  members[i], keys[i] = id, META .. id
end
local metas = call('MGET', unpack(keys))

local expires_at = NOW + ANSWER_TTL
local ending = pack('>dd', NOW, expires_at)
local epoch_of, done = {}, {} -- by state to attempts of a running record
local values = {}
local bytes = unpack_('>d', ARGV[5])
for i = 1, many do
  local meta, id = metas[i], members[i]
  if not meta then return 0 end
  local running = sub(meta, 34, 44)
  if not done[running] then
    if sub(running, 1, 3) ~= RUNNING_PLAIN then return 0 end
    epoch_of[running] = sub(running, 4, 7)
    done[running] = DONE_BRIEF .. epoch_of[running] .. pack('>I4', unpack_('>I4', running, 8) + 1)
  end
  if epoch_of[running] ~= sub(epochs, 4 * i - 3, 4 * i) or string.byte(meta, 17) ~= REQUESTS then return 0 end
  local at = 4 * i
  values[at - 3] = keys[i]
  values[at - 2] = sub(meta, 1, 33) .. done[running] .. sub(meta, 45, 56) .. ending
    .. sub(sizes, 8 * i - 7, 8 * i) .. sub(meta, 81) .. ARGV[2 * i + 4]
  values[at - 1] = REQUEST_KEY .. id
  values[at] = ARGV[2 * i + 5]
  bytes = bytes - unpack_('>d', meta, 73)
end

call('MSET', unpack(values))
call('ZADD', P .. 'timers', string.format('%.17g', expires_at), ENDED .. ids)
call('HINCRBY', P .. 'counts', 'requests.running', -many)
call('HINCRBY', P .. 'counts', 'requests.done', many)
call('HINCRBY', P .. 'counts', 'bytes', bytes)
call('PUBLISH', P .. 'changes', string.char(ALIKE, REQUESTS, 3) .. ids)
return 1
