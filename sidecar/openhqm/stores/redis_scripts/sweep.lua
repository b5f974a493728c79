-- Look at records whose lease, deadline or life ran out. ARGV[2]: most records.
-- Reply: how many, the changes made.

local function judge_lapsed(r)
  r.attempts = r.attempts + 1
  r.claims = r.claims + 1
  local _, on_lost, max_claims = terms(r)
  if on_lost ~= REPEAT then
    finish(r, FAILED, 'outcome-unknown', 0)
  elseif has(r, CANCEL_REQUESTED) then
    finish(r, CANCELLED, '', 0)
  elseif r.claims >= max_claims then
    finish(r, FAILED, 'poison', 0)
  else
    wait_again(r, NOW)
  end
end

-- One that runs keeps what it has: it enters the set again when it has to wait again.
local function judge_overdue(r)
  if waiting(r) then
    step_out(r)
    finish(r, EXPIRED, '', 0)
  else
    zrem('deadlines', r.id)
  end
end

local looked_at = 0
local function look(key, judge)
  local due = call('ZRANGE', P .. key, '-inf', NOW, 'BYSCORE', 'LIMIT', 0, ARGV[2] - looked_at)
  load(due)
  for i = 1, #due do
    local r = record(due[i])
    if r then judge(r) else zrem(key, due[i]) end
  end
  looked_at = looked_at + #due
end

look('leases', judge_lapsed)
look('deadlines', judge_overdue)
look('expiries', delete)
return {looked_at, commit()}
