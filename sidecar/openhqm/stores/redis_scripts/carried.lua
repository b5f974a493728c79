-- A broker has records: their requests go. ARGV[2..]: ids.
-- Reply: per record 1, or 0 when it is not publishing (any more).

local function carry(r)
  if not r or not has(r, PUBLISHING) then return 0 end
  drop_request(r)
  resize_request(r, 0)
  set_stage(r, CARRIED)
  return 1
end

local ids, replies = {}, {}
for i = 2, #ARGV do ids[i - 1] = ARGV[i] end
load(ids)
for i = 1, #ids do replies[i] = carry(record(ids[i])) end
commit()
return replies
