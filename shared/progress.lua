-- One step in the life of one task: the guard, the state, the version, the history, the live channel, the queue and the
-- expiry change together or not at all. Everything that changes a task goes through here.
--
-- KEYS  1 state hash   2 event stream   3 live channel   4 the owner's tasks   5 arq's queue   6 arq's job
-- ARGV  1 statuses the write is allowed from, `,a,b,`; empty: the task must not exist yet
--       2 attempt the writer holds; empty: not a worker's write
--       3 id of this write, so that one sent again after a lost answer counts once
--       4 event name, empty for a state    5 its data, empty for a state (made here from the hash)
--       6 history length   7 time to live in ms
--       8 queue action: add, remove or empty   9 arq job id   10 its payload   11 its score   12 its life in ms
--      13 control channel   14 control message, empty for none   15 creation time in ms for the index, empty for none
--      16 task id   17 1 if this is the terminal event, else empty
--      18… field, JSON text, field, JSON text, …
-- Returns {'ok', version} or {reason, status}; reason: unknown, exists, stale, status.
local state, stream, live = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', state, 'version', 'status', 'attempt', 'write')
local version, status, attempt, write = known[1], known[2], known[3], known[4]

if ARGV[1] == '' then
  if version then
    if write == ARGV[3] then return {'ok', tonumber(version)} end
    return {'exists', status}
  end
else
  if not version then return {'unknown', ''} end
  if write == ARGV[3] then return {'ok', tonumber(version)} end
  if ARGV[2] ~= '' and ARGV[2] ~= attempt then return {'stale', status} end
  -- status is a JSON text, so it wears quotes; the list does not
  if not string.find(ARGV[1], ',' .. string.sub(status, 2, -2) .. ',', 1, true) then return {'status', status} end
end

local fields = {'write', ARGV[3]}
for i = 18, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call('HSET', state, unpack(fields))
version = redis.call('HINCRBY', state, 'version', 1)

local data = ARGV[5]
if ARGV[4] == '' then
  local names = {LIVE_FIELDS}
  local values = redis.call('HMGET', state, unpack(names))
  local parts = {}
  for i, name in ipairs(names) do parts[i] = '"' .. name .. '":' .. (values[i] or 'null') end
  data = '{' .. table.concat(parts, ',') .. '}'
end
if ARGV[17] == '1' then redis.call('HSET', state, 'ended_version', version) end
redis.call('XADD', stream, 'MAXLEN', '=', ARGV[6], version .. '-0', 'n', ARGV[4], 'd', data)
redis.call('PEXPIRE', state, ARGV[7])
redis.call('PEXPIRE', stream, ARGV[7])

if ARGV[15] ~= '' then
  redis.call('ZADD', KEYS[4], ARGV[15], ARGV[16])
  redis.call('PEXPIRE', KEYS[4], ARGV[7])
end
if ARGV[8] == 'add' then
  redis.call('SET', KEYS[6], ARGV[10], 'PX', ARGV[12])
  redis.call('ZADD', KEYS[5], ARGV[11], ARGV[9])
elseif ARGV[8] == 'remove' then
  redis.call('ZREM', KEYS[5], ARGV[9])
  redis.call('DEL', KEYS[6])
end
redis.call('PUBLISH', live, version .. ' ' .. ARGV[4] .. ' ' .. data)
if ARGV[14] ~= '' then redis.call('PUBLISH', ARGV[13], ARGV[14]) end
return {'ok', version}
