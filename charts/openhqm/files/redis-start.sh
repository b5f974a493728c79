# Gives the administrator the Secret's password and starts Redis. Users that the operator made stay as they are.
set -eu
file=/data/users.acl
touch "$file"
digest=$(printf %s "$REDIS_PASSWORD" | sha256sum | cut -d ' ' -f 1)
{
  echo "user default on nopass resetkeys resetchannels -@all +ping"
  echo "user openhqm on #$digest ~* &* +@all"
  sed -n '/^user ns-/p' "$file"
} >"$file.new"
mv "$file.new" "$file"
unset REDIS_PASSWORD
exec redis-server /etc/redis/redis.conf
