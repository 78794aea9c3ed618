-- One step in the life of one task: the guard, the state, the version, the history, the live channel, the feeds of its
-- owner and its batch, the queue and the expiry change together or not at all. Everything that changes a task goes here,
-- its deletion too. Redis rolls nothing back, so all that can fail is done first: every key is read by a command of its
-- type, every refusal is given, and then comes the first write.
--
-- `KEY.` and `ARG.` with a name stand for KEYS[n] and ARGV[n]: shared/tasks/progress.py has the two lists, and fills the
-- numbers in.
-- KEY  state, events, live: the hash, the stream and the channel of the task; job: arq's
-- ARG  allowed: statuses the write is allowed from, `,a,b,`; empty: the task must not exist yet
--      attempt: the one that the writer holds; empty: not a worker's write
--      claim: token of the claim that the writer holds, a JSON text; empty: none
--      write_id: id of this write, so that one sent again after a lost answer counts once
--      event: its name, empty for a state; data: empty for a state (made here from the hash)
--      history_length; lives_ms: time to live of the task; owner_lives_ms: of what belongs to its owner, and of the job
--      queue: add, remove or empty; job_id, payload: of arq's job; due_ms: not before, empty for now
--      control, message: a channel and what is published there, empty for nothing
--      created_ms: creation time, empty for an existing task; task_id
--      step: `ends` if this is the terminal event, `deletes` if the task is no more after it, else empty
--      as_of: the version that the writer has read, where nobody may have written since; else empty
--      lease_ms: of a task that an outside producer runs: how long it may be silent from now on; `over`: refused unless it
--      has been silent for too long; empty: the write is no sign of life
--      most_bytes, most_tasks, most_words: bytes that the owner may hold, tasks that it may have unfinished, bytes of words that
--      it may hold in Redis, where this write is refused for more; else empty
--      follows: the task whose end this one waits for, because its file is that one's; empty: none
--      webhook: the platform's, which is told of every end, as a task's own is kept; empty: none
--      webhook_lives_ms: time to live of a notice
--      from ARG.fields on: field, JSON text, field, JSON text, …
-- Returns {'ok', version} or {reason, status}; reason: source (follows one that is not known), unknown, exists, stale, status, moved (as_of), alive (lease_ms), quota (with the bytes held), many (with
-- the unfinished tasks), words (with the bytes held).
-- Words in capitals that are no argument are filled in by shared/tasks/progress.py: LIVE_FIELDS; LIVE_STATE, the event of them,
-- joined from `given` and `values`; and the keys of shared/keys.py.
local state, stream, live = KEY.state, KEY.events, KEY.live
local name, data, task_id = ARG.event, ARG.data, ARG.task_id
local ends, deletes = ARG.step == 'ends', ARG.step == 'deletes'
local values = redis.call('HMGET', state, 'version', 'status', 'attempt', 'progress', 'write', 'ended_version', 'era',
  'claim', 'owner', 'batch_id', 'producer', LIVE_FIELDS)
local version, status, attempt, progress, write = values[1], values[2], values[3], values[4], values[5]
local given, fields = {}, {'write', ARG.write_id}
for i = ARG.fields, #ARGV, 2 do given[ARGV[i]] = ARGV[i + 1] end

-- Each change of status and each named event is remembered beside the last write: a retry of it counts once, whatever
-- others wrote in between.
local ledger = given.status and 'status_writes' or name ~= '' and not deletes and 'named_writes'
local written = version and ledger and redis.call('HGET', state, ledger) or ''
if version then
  local before = write == ARG.write_id and version or string.match(written, ARG.write_id .. '=(%d+)')
  if before then return {'ok', tonumber(before)} end
end
if ARG.allowed == '' then
  if version then return {'exists', status} end
else
  if not version then return {'unknown', ''} end
  if ARG.attempt ~= '' and ARG.attempt ~= attempt then return {'stale', status} end
  if ARG.claim ~= '' and ARG.claim ~= values[8] then return {'stale', status} end
  -- status is a JSON text, so it wears quotes; the list does not
  if not string.find(ARG.allowed, ',' .. string.sub(status, 2, -2) .. ',', 1, true) then return {'status', status} end
  if ARG.as_of ~= '' and ARG.as_of ~= version then return {'moved', status} end
end

local function is_end(one) return one == '"completed"' or one == '"failed"' or one == '"cancelled"' end
local was_ended = is_end(status)
local new_status = given.status or status
-- owner and batch id are of a charset that needs no escape, so between the quotes of the JSON text they are plain
local owner = string.sub(given.owner or values[9], 2, -2)
local batch = given.batch_id or values[10]
batch = batch and batch ~= 'null' and string.sub(batch, 2, -2) or ''
local function owned(pattern) return string.format(pattern, owner) end
local function whole(number) return string.format('%d', number) end

-- Of numbers that were given in an epoch that is over, some may be lost and seen: the next is above all of them.
local epoch = tonumber(redis.call('HGET', 'EPOCH', 'number') or 0)
local least = epoch * 1000000 + 1
local begins_epoch = epoch ~= tonumber(values[7] or 0)
-- And above what the stream holds, which takes no other: a number may be gone, and its stream there.
local function next_number(last, floor, key)
  local number = math.max((tonumber(last) or 0) + 1, floor)
  local above = key and redis.call('XRANGE', key, whole(number) .. '-0', '+')
  if above and above[1] then number = string.match(above[#above][1], '%d+') + 1 end
  return number
end

local is_new = not version
-- An outside producer's task is in a sorted set, by the moment at which it has been silent for too long.
local produced = given.producer or values[11]
produced = produced and produced ~= 'null'
local heard_ms
if produced then
  local time = redis.call('TIME')
  heard_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local silent_ms = tonumber(redis.call('ZSCORE', 'PRODUCERS', task_id) or nil)
  if ARG.lease_ms == 'over' and silent_ms and silent_ms > heard_ms then return {'alive', status} end
end
local new_version = next_number(version, begins_epoch and not is_new and least or 1, stream)
local owner_version = redis.call('GET', owned('OWNER_VERSION'))
local number = next_number(owner_version, least, owned('OWNER_EVENTS'))

-- One task more is refused in the step that would add it.
if ARG.most_tasks ~= '' then
  local unfinished = redis.call('SCARD', owned('OWNER_ACTIVE'))
  if unfinished >= tonumber(ARG.most_tasks) then return {'many', whole(unfinished)} end
end

-- The bytes of an owner: a task holds its input, announced or there, and its result. They move with its status only.
local total, held, bytes
if given.status or given.result_bytes or deletes then
  local kept = redis.call('HMGET', state, 'size_bytes', 'input_name', 'result_bytes')
  local function of(field, i) return given[field] or kept[i] or 'null' end
  bytes = deletes and 0 or tonumber(of('result_bytes', 3)) or 0
  if not deletes and (given.status == '"uploading"' or of('input_name', 2) ~= 'null') then
    bytes = bytes + (tonumber(of('size_bytes', 1)) or 0)
  end
  local stored = redis.call('HMGET', owned('OWNER_STORED'), 'total', task_id)
  total, held = tonumber(stored[1]) or 0, tonumber(stored[2]) or 0
  if ARG.most_bytes ~= '' and bytes > held and total + bytes - held > tonumber(ARG.most_bytes) then return {'quota', whole(total)} end
end

-- The words of an owner, which Redis holds: options, notes, log lines, summaries, checkpoints. They are as long as
-- somebody likes.
local words, words_total, words_held
local says = name == 'note' or name == 'log'
if is_new or deletes or says or given.result or given.checkpoint or given.partial then
  local kept = redis.call('HMGET', owned('OWNER_WORDS'), 'total', task_id)
  local function size(text) return text and text ~= 'null' and #text or 0 end
  words_total, words_held = tonumber(kept[1]) or 0, tonumber(kept[2]) or 0
  words = 0
  if not deletes then
    words = words_held + (says and #data or 0) + size(given.whole_result or given.result)
    if is_new then words = words + size(given.options) + size(given.upload_metadata) end
    if given.checkpoint then -- it takes the place of the one before, which may be from when they did not count
      words = math.max(0, words + size(given.checkpoint) - size(redis.call('HGET', state, 'checkpoint')))
    end
    if given.partial and not is_new then -- so does the newest of these
      local shown = redis.call('HMGET', state, 'partial', 'whole_partial')
      words = words + size(given.partial) + size(given.whole_partial) - size(shown[1]) - size(shown[2])
      words = math.max(0, words)
    end
    words = math.min(words, math.max(words_held, ARG.history_length * 16384)) -- more than its history holds it does not keep
  end
  local more = words - words_held
  if ARG.most_words ~= '' and more > 0 and words_total + more > tonumber(ARG.most_words) then
    return {'words', whole(words_total)}
  end
end

-- What operators see: how many tasks are in each state, and how many have ended. A change of status moves it, no other
-- event. Never below zero: a task may be older than the counting.
local counts = {}
if given.status and given.status ~= status then
  -- Outside producers are counted as one: their names are anybody's, and each would be a count for ever.
  local processor = ',' .. (produced and '"producer"' or given.processor or redis.call('HGET', state, 'processor') or 'null')
  local to, from = given.status .. processor, (status or '') .. processor
  local counted = redis.call('HMGET', 'COUNTS', to, from)
  counts = {to, whole((tonumber(counted[1]) or 0) + 1)}
  if status and not was_ended then
    counts[3], counts[4] = from, whole(math.max(0, (tonumber(counted[2]) or 0) - 1))
  end
end

-- The keys that are not read, by a command of their type. (OWNER_ACTIVE is the first that is written.)
redis.call('ZSCORE', owned('OWNER_CHANGED'), task_id)
local begins = name == '' and not ends and (is_new or values[6]) -- an ended task that changes its state was retried
if ARG.created_ms ~= '' or deletes then redis.call('ZSCORE', owned('OWNER_TASKS'), task_id) end
if deletes then redis.call('ZSCORE', 'DELETED', task_id) end
local line = ARG.queue ~= '' and LINE
local place
if ARG.queue == 'add' then
  local kept = redis.call('HMGET', state, 'processor', 'priority')
  place = line.place_by(given.processor or kept[1], given.owner or values[9], given.priority or kept[2],
    given.batch_id or values[10], ARG.due_ms ~= '' and ARG.due_ms * 1000 or line.now_us())
end
if line then
  redis.call('ZSCORE', 'QUEUE', ARG.job_id)
  line.check(ARG.job_id, place)
end
-- Its place in the line as it takes it; whoever waits is told again (api/streams/places.py).
local placed = {}
if given.status then placed = {'queue_position', 'null', 'starts_in_seconds', 'null'} end
if place and ARG.due_ms == '' then
  placed[2] = whole(line.position(place))
  placed[4] = line.starts_in(place, tonumber(placed[2]), 0)
elseif place then
  placed[4] = string.format('%.1f', math.max(0, ARG.due_ms - line.now_us() / 1000) / 1000)
end
for i = 1, #placed, 2 do given[placed[i]] = placed[i + 1] end

-- How long a task takes is measured from its last claim to its end.
local claimed_ms, took
if given.claim then
  claimed_ms = whole(math.floor(redis.call('TIME')[1] * 1000 + redis.call('TIME')[2] / 1000))
elseif ends and new_status == '"completed"' and not produced then
  local known = redis.call('HMGET', state, 'claimed_ms', 'processor')
  local time, processor = redis.call('TIME'), known[2] and string.sub(known[2], 2, -2)
  if known[1] then
    local ms = math.max(0, time[1] * 1000 + math.floor(time[2] / 1000) - known[1])
    local learnt = LINE.learnt
    took = {processor, learnt(redis.call('HGET', 'LINE_DURATIONS', processor), ms)}
  end
end

-- The batch's roll-up: counts and a sum that move by this task's difference, so the cost does not grow with the batch.
-- An event is sent when a count changes or the whole has moved by a tenth of a percent. A roll-up that is gone while a
-- task of it lives begins anew with the tasks that change.
local rollup, batch_index, batch_fields, batch_event
if batch ~= '' and (name == '' or deletes) then
  local named = string.gsub(batch, 'BATCH_ENDING$', 'BATCH_ESCAPED') -- as keys.of_batch
  rollup, batch_index = string.format('BATCH_STATE', owner, named), string.format('BATCH_TASKS', owner, named)
  if is_new or deletes then redis.call('ZSCORE', batch_index, task_id) end
  local statuses = {'uploading', 'queued', 'processing', 'completed', 'failed', 'cancelled'}
  local was = redis.call('HMGET', rollup, 'total', 'sum', 'shown', 'began_ms', 'began_at_progress', 'version',
    unpack(statuses))
  local function share(of_status, of_progress) return is_end(of_status) and 100 or tonumber(of_progress) or 0 end
  local known = was[1] and not is_new -- the task is counted in it
  local tasks, sum = tonumber(was[1] or 0) + (known and 0 or 1), tonumber(was[2] or 0)
  if known then sum = sum - share(status, progress) end
  if deletes then tasks = math.max(0, tasks - 1) else sum = sum + share(new_status, given.progress or progress) end
  local counted = deletes or not known or status ~= new_status
  local parts, ended, all = {}, 0, 0
  batch_fields = {}
  for i, one in ipairs(statuses) do
    local count, quoted = tonumber(was[i + 6] or 0), '"' .. one .. '"'
    if counted then
      if known and quoted == status then count = count - 1 end
      if not deletes and quoted == new_status then count = count + 1 end
      count = math.max(0, count)
      batch_fields[#batch_fields + 1] = one
      batch_fields[#batch_fields + 1] = whole(count)
    end
    all = all + count
    if i > 3 then ended = ended + count end
    parts[i] = quoted .. ':' .. count
  end
  tasks = math.max(tasks, all)
  local done = ended == tasks and 100 or math.max(0, math.min(99.99, sum / tasks))
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local began_ms, began_at = tonumber(was[4]), tonumber(was[5] or 0)
  local function set(field, value)
    batch_fields[#batch_fields + 1] = field
    batch_fields[#batch_fields + 1] = value
  end
  set('total', whole(tasks))
  set('sum', string.format('%.17g', sum))
  if not began_ms and not deletes and new_status == '"processing"' then
    began_ms, began_at = now_ms, done
    set('began_ms', whole(now_ms))
    set('began_at_progress', tostring(done))
  end
  local tenth = tostring(math.floor(done * 10))
  if counted or tenth ~= was[3] then
    local eta = 'null'
    if done == 100 then
      eta = '0'
    elseif began_ms and done - began_at > 0.5 and now_ms > began_ms then
      eta = string.format('%.1f', (100 - done) * (now_ms - began_ms) / 1000 / (done - began_at))
    end
    local batch_version = whole(next_number(was[6], least))
    local text = '{"batch_id":"' .. batch .. '","version":' .. batch_version
      .. ',"status":"' .. (ended == tasks and 'ended' or 'active') .. '","progress":' .. string.format('%.2f', done)
      .. ',"eta_seconds":' .. eta .. ',"total":' .. tasks .. ',"counts":{' .. table.concat(parts, ',') .. '}}'
    set('version', batch_version)
    set('shown', tenth)
    set('json', text)
    batch_event = batch_version .. '  ' .. text
  end
end

-- A deleted task's events, which its owner's feed would replay.
local forgotten = {}
if deletes then
  local from = '-'
  while from do
    local page = redis.call('XRANGE', owned('OWNER_EVENTS'), from, '+', 'COUNT', 100)
    for _, entry in ipairs(page) do
      if entry[2][2] == task_id then forgotten[#forgotten + 1] = entry[1] end
    end
    from = page[100] and '(' .. page[100][1]
  end
end

-- A task that takes another's file is looked at when that one has ended (worker/followers.py).
local freed, source_lives = {}, false
if ARG.follows ~= '' then
  local source = redis.call('HGET', 'ANY_STATE' .. ARG.follows, 'status')
  if is_new and not source then return {'source', ''} end
  source_lives = source and not is_end(source)
  redis.call('SCARD', string.format('FOLLOWERS_OF', ARG.follows))
  if not source_lives then freed[1] = task_id end
elseif ends then
  freed = redis.call('SMEMBERS', string.format('FOLLOWERS_OF', task_id))
end
if freed[1] then redis.call('ZSCORE', 'FOLLOWERS', task_id) end

-- Who is told of this end: the task's own webhook and the platform's. A notice holds the task as it is at this end, so
-- that it says the same at each try, whatever becomes of the task (shared/webhooks/outbox.py).
local notices, settled = {}, {}
if ends then
  local time = redis.call('TIME')
  local now_ms = whole(time[1] * 1000 + math.floor(time[2] / 1000))
  local hooks = {given.webhook or redis.call('HGET', state, 'webhook') or '', ARG.webhook}
  for i, hook in ipairs(hooks) do
    local to, events, url = string.match(hook, '^{"to":"([%w.]+)","events":%[([^%]]*)%],"url":(".*")}$')
    if to and string.find(events, new_status, 1, true) and not (notices[1] and notices[1].url == url) then
      local id = 'msg_' .. task_id .. '_' .. whole(new_version) .. (i == 2 and '_all' or '')
      local receiver = owner .. '/' .. to
      redis.call('ZSCORE', 'WEBHOOKS_DUE', receiver)
      redis.call('ZSCORE', string.format('WEBHOOKS_TO', receiver), id)
      redis.call('ZSCORE', string.format('WEBHOOKS_OF', task_id), id)
      notices[#notices + 1] = {id = id, receiver = receiver, url = url, at = now_ms, from = i == 1 and 'task' or 'platform'}
    end
  end
  if notices[1] then
    local inside = {version = true, write = true, checkpoint = true, produced = true, status_writes = true,
      named_writes = true, webhook = true}
    local parts = {'"version":' .. whole(new_version)}
    local function add(field, text)
      if not inside[field] then parts[#parts + 1] = '"' .. field .. '":' .. text end
      inside[field] = true
    end
    for field, text in pairs(given) do add(field, text) end
    local kept = redis.call('HGETALL', state)
    for i = 1, #kept, 2 do add(kept[i], kept[i + 1]) end
    notices.task = '{' .. table.concat(parts, ',') .. '}'
  end
elseif deletes then -- what is still to be sent is sent
  for _, id in ipairs(redis.call('ZRANGE', string.format('WEBHOOKS_OF', task_id), 0, -1)) do
    local notice = string.format('WEBHOOK', id)
    if redis.call('HGET', notice, 'status') ~= 'pending' then settled[#settled + 1] = notice end
  end
end

-- Progress is most of what comes here, and a fifth of its cost was to say each time anew when all its keys expire: that
-- is said where the status changes, and else once an hour. A task that has ended is kept no longer for what is said of it.
local lives_ms = redis.call('PTTL', state)
local renewed = given.status or lives_ms < 0 or (not was_ended and (begins_epoch or lives_ms < ARG.lives_ms - 3600000))

-- From here on nothing is refused and nothing fails, but for the first write: where that is SADD or HSET, a full Redis
-- refuses it, and after it none. A deletion gives room, so it begins with what is never refused.
version = whole(new_version)
if deletes then
  redis.call('SREM', owned('OWNER_ACTIVE'), task_id)
elseif begins or ends then
  redis.call('SADD', owned('OWNER_ACTIVE'), task_id)
end
if deletes then
  redis.call('DEL', state, stream)
  redis.call('ZADD', 'DELETED', redis.call('TIME')[1], task_id)
  redis.call('PEXPIRE', 'DELETED', ARG.owner_lives_ms)
  -- A file of Redis users from before there was XDEL in it leaves them to be trimmed.
  for i = 1, #forgotten do redis.pcall('XDEL', owned('OWNER_EVENTS'), forgotten[i]) end
else
  given.version = version
  for i = ARG.fields, #ARGV do fields[#fields + 1] = ARGV[i] end
  local function set(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  set('version', version)
  if claimed_ms then set('claimed_ms', claimed_ms) end
  for i = 1, #placed, 2 do set(placed[i], placed[i + 1]) end
  if begins_epoch then set('era', whole(epoch)) end
  if ends then set('ended_version', version) end
  if ARG.follows ~= '' then set('source_had_ended', source_lives and 'false' or 'true') end
  if ledger then -- this one, and of those before as many as fit
    local before = string.match(string.sub(string.gsub(written, '"', ','), 1, 400), '^(.*),') or ''
    set(ledger, '"' .. ARG.write_id .. '=' .. version .. before .. '"')
  end
  redis.call('HSET', state, unpack(fields))
  if begins and not is_new then redis.call('HDEL', state, 'ended_version') end
  if name == '' then data = LIVE_STATE end
  redis.call('XADD', stream, 'MAXLEN', '=', ARG.history_length, version .. '-0', 'n', name, 'd', data)
  if renewed then redis.call('PEXPIRE', state, ARG.lives_ms) end
  if renewed or was_ended then redis.call('PEXPIRE', stream, renewed and ARG.lives_ms or lives_ms) end
  redis.call('PUBLISH', live, version .. ' ' .. name .. ' ' .. data)
end
if bytes and bytes ~= held then
  redis.call('HSET', owned('OWNER_STORED'), 'total', whole(total + bytes - held), task_id, whole(bytes))
  if bytes == 0 then redis.call('HDEL', owned('OWNER_STORED'), task_id) end
end
if words and words ~= words_held then
  redis.call('HSET', owned('OWNER_WORDS'), 'total', whole(math.max(0, words_total + words - words_held)), task_id, whole(words))
  if words == 0 then redis.call('HDEL', owned('OWNER_WORDS'), task_id) end
  redis.call('PEXPIRE', owned('OWNER_WORDS'), ARG.owner_lives_ms)
end
if produced then
  if ends or deletes then
    redis.call('ZREM', 'PRODUCERS', task_id)
  elseif ARG.lease_ms ~= '' then
    redis.call('ZADD', 'PRODUCERS', whole(heard_ms + ARG.lease_ms), task_id)
    redis.call('PEXPIRE', 'PRODUCERS', ARG.owner_lives_ms)
  end
end
if took then
  redis.call('HSET', 'LINE_DURATIONS', took[1], took[2])
  redis.call('PEXPIRE', 'LINE_DURATIONS', ARG.owner_lives_ms)
end
if counts[1] then
  redis.call('HSET', 'COUNTS', unpack(counts))
  redis.call('PEXPIRE', 'COUNTS', ARG.owner_lives_ms)
end

-- The owner's feed: every event of every task once more, under a number of its own, and which task changed when.
number = whole(number)
redis.call('SET', owned('OWNER_VERSION'), number, 'KEEPTTL')
redis.call('XADD', owned('OWNER_EVENTS'), 'MAXLEN', '=', ARG.history_length, number .. '-0', 't', task_id, 'v', version, 'b', batch,
  'n', name, 'd', data)
if deletes then
  redis.call('ZREM', owned('OWNER_CHANGED'), task_id)
  redis.call('ZREM', owned('OWNER_TASKS'), task_id)
else
  -- By any event, a log or a note too: a state that is shown under this number has their versions (owner_feed.py).
  redis.call('ZADD', owned('OWNER_CHANGED'), number, task_id)
  if ARG.created_ms ~= '' then redis.call('ZADD', owned('OWNER_TASKS'), ARG.created_ms, task_id) end
end
if ends then redis.call('SREM', owned('OWNER_ACTIVE'), task_id) end
if renewed or was_ended or not owner_version then
  for _, pattern in ipairs({'OWNER_VERSION', 'OWNER_EVENTS', 'OWNER_CHANGED', 'OWNER_ACTIVE', 'OWNER_TASKS',
    'OWNER_STORED', 'OWNER_WORDS'}) do
    redis.call('PEXPIRE', owned(pattern), ARG.owner_lives_ms)
  end
  redis.call('PEXPIRE', 'EPOCH', ARG.owner_lives_ms)
end
redis.call('PUBLISH', owned('OWNER_LIVE'), number .. ' ' .. task_id .. ' ' .. version .. ' ' .. batch .. ' ' .. name .. ' ' .. data)

if rollup then
  redis.call('HSET', rollup, unpack(batch_fields))
  if is_new then redis.call('ZADD', batch_index, ARG.created_ms, task_id) end
  if deletes then redis.call('ZREM', batch_index, task_id) end
  redis.call('PEXPIRE', rollup, ARG.owner_lives_ms)
  redis.call('PEXPIRE', batch_index, ARG.owner_lives_ms)
  if batch_event then redis.call('PUBLISH', string.format('BATCH_LIVE', owner, batch), batch_event) end
end

if ARG.queue == 'add' then
  redis.call('SET', KEY.job, ARG.payload, 'PX', ARG.lives_ms)
  if ARG.due_ms ~= '' then line.put_later(ARG.job_id, place, ARG.due_ms) else line.put(ARG.job_id, place) end
elseif ARG.queue == 'remove' then
  redis.call('ZREM', 'QUEUE', ARG.job_id)
  redis.call('DEL', KEY.job)
  line.cancel(ARG.job_id)
end
if source_lives then
  redis.call('SADD', string.format('FOLLOWERS_OF', ARG.follows), task_id)
  redis.call('PEXPIRE', string.format('FOLLOWERS_OF', ARG.follows), ARG.owner_lives_ms)
end
for _, follower in ipairs(freed) do redis.call('ZADD', 'FOLLOWERS', 1, follower) end
if freed[1] then
  redis.call('PEXPIRE', 'FOLLOWERS', ARG.owner_lives_ms)
  if ends then redis.call('DEL', string.format('FOLLOWERS_OF', task_id)) end
  redis.call('PUBLISH', ARG.control, 'wake')
end
for _, notice in ipairs(notices) do
  local id, of, to = notice.id, string.format('WEBHOOKS_OF', task_id), string.format('WEBHOOKS_TO', notice.receiver)
  redis.call('HSET', string.format('WEBHOOK', id), 'id', id, 'task_id', task_id, 'receiver', notice.receiver, 'url',
    notice.url, 'from', notice.from, 'type', 'task.' .. string.sub(new_status, 2, -2), 'task', notices.task,
    'created_ms', notice.at, 'status', 'pending')
  redis.call('PEXPIRE', string.format('WEBHOOK', id), ARG.webhook_lives_ms)
  redis.call('ZADD', of, notice.at, id)
  redis.call('PEXPIRE', of, ARG.webhook_lives_ms)
  redis.call('ZADD', to, notice.at, id)
  redis.call('PEXPIRE', to, ARG.owner_lives_ms)
  redis.call('ZADD', 'WEBHOOKS_DUE', 'LT', notice.at, notice.receiver)
  redis.call('PEXPIRE', 'WEBHOOKS_DUE', ARG.owner_lives_ms)
end
if deletes then redis.call('DEL', string.format('WEBHOOKS_OF', task_id), unpack(settled)) end
if ARG.message ~= '' then redis.call('PUBLISH', ARG.control, ARG.message) end
return {'ok', new_version}
