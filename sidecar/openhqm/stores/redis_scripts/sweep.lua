-- Look at records whose timer ran out. ARGV[2]: most records. Reply: how many, the changes made.

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

local due = call('ZRANGE', P .. 'timers', '-inf', NOW, 'BYSCORE', 'LIMIT', 0, ARGV[2])
load(due)
for i = 1, #due do
  local r = record(due[i])
  if not r then
    zrem('timers', due[i])
  elseif r.state == RUNNING then
    judge_lapsed(r)
  elseif waiting(r) then
    step_out(r)
    finish(r, EXPIRED, '', 0)
  else
    delete(r)
  end
end
return {#due, commit()}
