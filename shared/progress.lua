-- One step in the life of one task: the guard, the state, the version, the history, the live channel, the feeds of its
-- owner and its batch, the queue and the expiry change together or not at all. Everything that changes a task goes here.
--
-- KEYS  1 state hash   2 event stream   3 live channel   4 arq's queue   5 arq's job
-- ARGV  1 statuses the write is allowed from, `,a,b,`; empty: the task must not exist yet
--       2 attempt the writer holds; empty: not a worker's write
--       3 id of this write, so that one sent again after a lost answer counts once
--       4 event name, empty for a state    5 its data, empty for a state (made here from the hash)
--       6 history length   7 time to live of the task in ms   8 of what belongs to its owner, and of the job
--       9 queue action: add, remove or empty   10 arq job id   11 its payload   12 its score
--      13 control channel   14 control message, empty for none   15 creation time in ms, empty for an existing task
--      16 task id   17 1 if this is the terminal event, else empty
--      18 bytes that the owner may hold, where this write is refused for more; else empty
--      19… field, JSON text, field, JSON text, …
-- Returns {'ok', version} or {reason, status}; reason: unknown, exists, stale, status, quota (with the bytes held).
-- Words in capitals that are no argument are filled in by shared/progress.py: LIVE_FIELDS; LIVE_STATE, the event of them,
-- joined from `values`; and the keys of shared/keys.py.
local state, stream, live = KEYS[1], KEYS[2], KEYS[3]
local task_id, terminal = ARGV[16], ARGV[17] == '1'
local known = redis.call('HMGET', state, 'version', 'status', 'attempt', 'write', 'progress', 'ended_version', 'era')
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

-- Of numbers that were given in an era that is over, some may be lost and seen: the next is above all of them.
local era = tonumber(redis.call('HGET', 'ERA', 'number') or 0)
local least = era * 1000000 + 1
local begins_era = era ~= tonumber(known[7] or 0)

local fields, given = {'write', ARGV[3]}, {}
for i = 19, #ARGV do fields[#fields + 1] = ARGV[i] end
for i = 3, #fields, 2 do given[fields[i]] = fields[i + 1] end

-- The bytes of an owner: a task holds its input, announced or there, and its result. They move with its status only.
if given.status then
  local kept = redis.call('HMGET', state, 'owner', 'size_bytes', 'input_name', 'result_bytes')
  local function of(field, i) return given[field] or kept[i] or 'null' end
  local bytes = tonumber(of('result_bytes', 4)) or 0
  if given.status == '"uploading"' or of('input_name', 3) ~= 'null' then
    bytes = bytes + (tonumber(of('size_bytes', 2)) or 0)
  end
  local stored = string.format('OWNER_STORED', string.sub(of('owner', 1), 2, -2))
  local held = redis.call('HMGET', stored, 'total', task_id)
  local total, before = tonumber(held[1]) or 0, tonumber(held[2]) or 0
  if ARGV[18] ~= '' and bytes > before and total + bytes - before > tonumber(ARGV[18]) then
    return {'quota', string.format('%d', total)}
  end
  if bytes ~= before then
    redis.call('HSET', stored, 'total', string.format('%d', total + bytes - before), task_id, string.format('%d', bytes))
    if bytes == 0 then redis.call('HDEL', stored, task_id) end
  end
end

-- The first write is one that a full Redis refuses: after it, it would refuse none.
redis.call('HSET', state, unpack(fields))
local is_new = not version
version = redis.call('HINCRBY', state, 'version', 1)
if begins_era then
  redis.call('HSET', state, 'era', string.format('%d', era))
  if not is_new and version < least then
    version = least
    redis.call('HSET', state, 'version', string.format('%d', version))
  end
end
if terminal then redis.call('HSET', state, 'ended_version', version) end

-- What operators see: how many tasks are in each state, and how many have ended. A change of status moves it, no other
-- event. Never below zero: a task may be older than the counting.
if given.status and given.status ~= status then
  local processor = ',' .. (given.processor or redis.call('HGET', state, 'processor'))
  local ended = status == '"completed"' or status == '"failed"' or status == '"cancelled"'
  if status and not ended and redis.call('HINCRBY', 'COUNTS', status .. processor, -1) < 0 then
    redis.call('HSET', 'COUNTS', status .. processor, 0)
  end
  redis.call('HINCRBY', 'COUNTS', given.status .. processor, 1)
  redis.call('PEXPIRE', 'COUNTS', ARGV[8])
end

local name, data = ARGV[4], ARGV[5]
local values = redis.call('HMGET', state, 'owner', 'batch_id', 'status', 'progress', LIVE_FIELDS)
-- owner and batch id are of a charset that needs no escape, so between the quotes of the JSON text they are plain
local owner = string.sub(values[1], 2, -2)
local batch = values[2] ~= 'null' and string.sub(values[2], 2, -2) or ''
if name == '' then data = LIVE_STATE end
redis.call('XADD', stream, 'MAXLEN', '=', ARGV[6], version .. '-0', 'n', name, 'd', data)
-- Progress is most of what comes here, and a fifth of its cost was to say each time anew when all its keys expire: that
-- is said where the status changes, and else once an hour. The keys of the owner were renewed when the task's were.
local renewed = given.status or begins_era or redis.call('PTTL', state) < ARGV[7] - 3600000
if renewed then
  redis.call('PEXPIRE', state, ARGV[7])
  redis.call('PEXPIRE', stream, ARGV[7])
end
redis.call('PUBLISH', live, version .. ' ' .. name .. ' ' .. data)

-- The owner's feed: every event of every task once more, under a number of its own, and which task changed when.
local function owned(pattern) return string.format(pattern, owner) end
local number = redis.call('INCR', owned('OWNER_VERSION'))
if number < least then
  number = least
  redis.call('SET', owned('OWNER_VERSION'), string.format('%d', number))
end
redis.call('XADD', owned('OWNER_EVENTS'), 'MAXLEN', '=', ARGV[6], number .. '-0', 't', task_id, 'v', version, 'b', batch,
  'n', name, 'd', data)
redis.call('ZADD', owned('OWNER_CHANGED'), number, task_id)
if terminal then
  redis.call('SREM', owned('OWNER_ACTIVE'), task_id)
elseif not status or known[6] then -- new, or begun again: an ended task that changes its state was retried
  if name == '' then
    redis.call('SADD', owned('OWNER_ACTIVE'), task_id)
    redis.call('HDEL', state, 'ended_version')
  end
end
if ARGV[15] ~= '' then redis.call('ZADD', owned('OWNER_TASKS'), ARGV[15], task_id) end
if renewed then
  for _, pattern in ipairs({'OWNER_VERSION', 'OWNER_EVENTS', 'OWNER_CHANGED', 'OWNER_ACTIVE', 'OWNER_TASKS',
    'OWNER_STORED'}) do
    redis.call('PEXPIRE', owned(pattern), ARGV[8])
  end
  redis.call('PEXPIRE', 'ERA', ARGV[8])
end
redis.call('PUBLISH', owned('OWNER_LIVE'), number .. ' ' .. task_id .. ' ' .. version .. ' ' .. batch .. ' ' .. name .. ' ' .. data)

-- The batch's roll-up: counts and a sum that move by this task's difference, so the cost does not grow with the batch.
-- An event is sent when a count changes or the whole has moved by a tenth of a percent.
if batch ~= '' and name == '' then
  local function of_batch(pattern) return string.format(pattern, owner, batch) end
  local rollup = of_batch('BATCH_STATE')
  local function share(of_status, of_progress)
    if not of_status then return 0 end
    local ended = of_status == '"completed"' or of_status == '"failed"' or of_status == '"cancelled"'
    return ended and 100 or tonumber(of_progress)
  end
  local moved = share(values[3], values[4]) - share(status, known[5])
  local counted = status ~= values[3]
  if counted then
    if status then redis.call('HINCRBY', rollup, string.sub(status, 2, -2), -1) else redis.call('HINCRBY', rollup, 'total', 1) end
    redis.call('HINCRBY', rollup, string.sub(values[3], 2, -2), 1)
  end
  if not status then
    redis.call('ZADD', of_batch('BATCH_TASKS'), ARGV[15], task_id)
  end
  local sum = tonumber(redis.call('HINCRBYFLOAT', rollup, 'sum', moved))
  local statuses = {'uploading', 'queued', 'processing', 'completed', 'failed', 'cancelled'}
  local numbers = redis.call('HMGET', rollup, 'total', 'shown', 'began_ms', unpack(statuses))
  local total = tonumber(numbers[1])
  local counts, ended = {}, 0
  for i, one in ipairs(statuses) do
    local count = tonumber(numbers[i + 3] or 0)
    if i > 3 then ended = ended + count end
    counts[i] = '"' .. one .. '":' .. count
  end
  local progress = ended == total and 100 or math.max(0, math.min(99.99, sum / total))
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local began_ms = tonumber(numbers[3])
  if not began_ms and values[3] == '"processing"' then
    began_ms = now_ms
    redis.call('HSET', rollup, 'began_ms', string.format('%d', now_ms), 'began_at_progress', tostring(progress))
  end
  local tenth = tostring(math.floor(progress * 10))
  if counted or tenth ~= numbers[2] then
    local eta = 'null'
    local begun_at = tonumber(redis.call('HGET', rollup, 'began_at_progress') or '0')
    if progress == 100 then
      eta = '0'
    elseif began_ms and progress - begun_at > 0.5 and now_ms > began_ms then
      eta = string.format('%.1f', (100 - progress) * (now_ms - began_ms) / 1000 / (progress - begun_at))
    end
    local batch_version = redis.call('HINCRBY', rollup, 'version', 1)
    if batch_version < least then
      batch_version = least
      redis.call('HSET', rollup, 'version', string.format('%d', batch_version))
    end
    local text = '{"batch_id":"' .. batch .. '","version":' .. batch_version
      .. ',"status":"' .. (ended == total and 'ended' or 'active') .. '","progress":' .. string.format('%.2f', progress)
      .. ',"eta_seconds":' .. eta .. ',"total":' .. total .. ',"counts":{' .. table.concat(counts, ',') .. '}}'
    redis.call('HSET', rollup, 'shown', tenth, 'json', text)
    redis.call('PUBLISH', of_batch('BATCH_LIVE'), batch_version .. '  ' .. text)
  end
  redis.call('PEXPIRE', rollup, ARGV[8])
  redis.call('PEXPIRE', of_batch('BATCH_TASKS'), ARGV[8])
end

if ARGV[9] == 'add' then
  redis.call('SET', KEYS[5], ARGV[11], 'PX', ARGV[8])
  redis.call('ZADD', KEYS[4], ARGV[12], ARGV[10])
elseif ARGV[9] == 'remove' then
  redis.call('ZREM', KEYS[4], ARGV[10])
  redis.call('DEL', KEYS[5])
end
if ARGV[14] ~= '' then redis.call('PUBLISH', ARGV[13], ARGV[14]) end
return {'ok', version}
