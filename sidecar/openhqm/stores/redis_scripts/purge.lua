-- Delete final records. ARGV[2..]: ids. Reply: how many were deleted.

local ids, deleted = {}, 0
for i = 2, #ARGV do ids[i - 1] = ARGV[i] end
load(ids)
for i = 1, #ids do
  local r = record(ids[i])
  if r and not r.deleted and r.state >= DONE then
    delete(r)
    deleted = deleted + 1
  end
end
commit()
return deleted
