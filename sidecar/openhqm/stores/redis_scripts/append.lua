-- Add chunks to a blob nobody names yet. ARGV[2]: name, ARGV[3]: seconds it may stay so,
-- ARGV[4..]: chunks.

local key = P .. 'blob:' .. ARGV[2]
for i = 4, #ARGV do call('RPUSH', key, ARGV[i]) end
call('EXPIRE', key, ARGV[3])
return 1
