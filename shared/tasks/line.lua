-- The line of waiting jobs: who goes first. Included in each script that changes it (shared/tasks/line.py), which hands
-- out the functions of the table `line`.
--
-- Owners take turns: an owner's score in LINE_OWNERS is the moment at which its turn comes, by a clock that counts turns
-- and arrivals. One that comes anew stands at the present, one that had its turn a ROUND later. So whoever waits for the
-- first time is next, however much others have sent; and nobody waits for more than a round of newcomers. LINE_TURNS
-- remembers the score of an owner that has left, until the clock has passed it.
-- Within an owner the highest priority goes first; among the batches of that priority, the one whose turn was longest
-- ago; within a batch, whoever came first.
-- A claim reads heads of sorted sets: it costs the logarithm of the length of the line.
--
-- Each processor has a ring of owners of its own, so that one that is paused or has its limit is passed over as a whole.
-- An owner that has its limit leaves the rings for LINE_FULL, until a task of its ends.
--
-- A job is in one of LINE_WAITING, LINE_LATER (until the moment that it is due) and LINE_RUNNING (until the moment at
-- which its lease is over, if nobody renews it); LINE_JOBS has its place, `processor owner priority order batch`.
local line = {}
local ROUND, LEVEL = 65536, 1099511627776 -- the second is above every count of the clock

local LIVES_MS = 2592000000 -- 30 days: of the clock and of what goes by it, since the last turn or arrival

local function whole(number) return string.format('%d', number) end

local function tick()
  local clock = redis.call('INCR', 'LINE_CLOCK')
  redis.call('PEXPIRE', 'LINE_CLOCK', LIVES_MS)
  return clock
end

function line.now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function text_of(place)
  return table.concat({place.processor, place.owner, place.priority, whole(place.order), place.batch}, ' ')
end

function line.place_of(job)
  local text = redis.call('HGET', 'LINE_JOBS', job)
  if not text then return nil end
  local processor, owner, priority, order, batch = string.match(text, '^(%S*) (%S+) (%d) (%d+) (%S*)$')
  return {processor = processor, owner = owner, priority = priority, order = tonumber(order), batch = batch}
end

-- Where a job stands by the hash of its task: JSON texts, all of them of a charset that needs no escape.
function line.place_by(processor, owner, priority, batch, order)
  local function bare(text, otherwise) return text and string.match(text, '^"(%S*)"$') or otherwise end
  return {processor = bare(processor, ''), owner = bare(owner, 'anyone'), batch = bare(batch, ''),
    priority = string.match(priority or '', '^%d$') or '5', order = order}
end

local function owners_of(processor) return string.format('LINE_OWNERS', processor) end
local function groups_of(place, processor) return string.format('LINE_GROUPS', processor or place.processor, place.owner) end
local function group_of(place)
  return string.format('LINE_GROUP', place.processor, place.owner, place.priority, place.batch)
end
local function member_of(place) return place.priority .. ':' .. place.batch end
local function score_in_level(place, number) return whole((9 - place.priority) * LEVEL + number) end
local function held_by(place)
  return string.format('LINE_HELD_OWNER', place.owner), string.format('LINE_HELD_PROCESSOR', place.processor)
end
line.held_by = held_by

-- Reads every key that a change of this job touches, by a command of its type: what can fail, fails here.
function line.check(job, place)
  redis.call('GET', 'LINE_CLOCK')
  for _, key in ipairs({'LINE_WAITING', 'LINE_LATER', 'LINE_RUNNING'}) do redis.call('ZSCORE', key, job) end
  local known = line.place_of(job)
  place = place or known
  if not place then return end
  redis.call('ZSCORE', 'LINE_TURNS', place.owner)
  redis.call('HGET', 'LINE_COUNTS', place.owner)
  redis.call('ZSCORE', 'LINE_FULL', place.owner)
  redis.call('SCARD', 'LINE_PROCESSORS')
  redis.call('ZCARD', owners_of(place.processor))
  redis.call('ZCARD', groups_of(place))
  redis.call('ZCARD', group_of(place))
  local by_owner, by_processor = held_by(place)
  redis.call('SCARD', by_owner)
  redis.call('SCARD', by_processor)
end

function line.knows(job)
  return redis.call('ZSCORE', 'LINE_WAITING', job) or redis.call('ZSCORE', 'LINE_RUNNING', job)
    or redis.call('ZSCORE', 'LINE_LATER', job)
end

local function join_ring(owner, processor, clock)
  local turn = math.max(clock, tonumber(redis.call('ZSCORE', 'LINE_TURNS', owner) or nil) or 0)
  redis.call('ZADD', owners_of(processor), 'NX', whole(turn), owner)
end

-- At the end of its group; `first`: before all others of its owner, whose turn is the next.
function line.put(job, place, first)
  local clock = tick()
  redis.call('HSET', 'LINE_JOBS', job, text_of(place))
  if redis.call('ZADD', 'LINE_WAITING', whole(place.order), job) == 1 then
    redis.call('HINCRBY', 'LINE_COUNTS', place.owner, 1)
  end
  redis.call('SADD', 'LINE_PROCESSORS', place.processor)
  redis.call('ZADD', group_of(place), whole(place.order), job)
  redis.call('ZADD', groups_of(place), 'NX', score_in_level(place, clock), member_of(place))
  if first then redis.call('ZADD', groups_of(place), score_in_level(place, 0), member_of(place)) end
  if redis.call('ZSCORE', 'LINE_FULL', place.owner) then return end
  join_ring(place.owner, place.processor, clock)
  if first then redis.call('ZADD', owners_of(place.processor), 0, place.owner) end
end

-- Not before `due_ms`.
function line.put_later(job, place, due_ms)
  redis.call('HSET', 'LINE_JOBS', job, text_of(place))
  redis.call('ZADD', 'LINE_LATER', due_ms, job)
end

local function leave_full(owner)
  for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PROCESSORS')) do
    if redis.call('ZCARD', string.format('LINE_GROUPS', processor, owner)) > 0 then return end
  end
  redis.call('ZREM', 'LINE_FULL', owner)
end

local function take_out(job, place)
  if redis.call('ZREM', 'LINE_WAITING', job) == 0 then return end
  if redis.call('HINCRBY', 'LINE_COUNTS', place.owner, -1) < 1 then redis.call('HDEL', 'LINE_COUNTS', place.owner) end
  redis.call('ZREM', group_of(place), job)
  if redis.call('ZCARD', group_of(place)) == 0 then redis.call('ZREM', groups_of(place), member_of(place)) end
  if redis.call('ZCARD', groups_of(place)) == 0 then
    redis.call('ZREM', owners_of(place.processor), place.owner)
    leave_full(place.owner)
    if redis.call('ZCARD', owners_of(place.processor)) == 0 and redis.call('ZCARD', 'LINE_FULL') == 0 then
      redis.call('SREM', 'LINE_PROCESSORS', place.processor)
    end
  end
end

-- An owner that had its limit waits in the rings again.
local function come_back(owner)
  if redis.call('ZREM', 'LINE_FULL', owner) == 0 then return end
  local clock = tonumber(redis.call('GET', 'LINE_CLOCK')) or 0
  for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PROCESSORS')) do
    if redis.call('ZCARD', string.format('LINE_GROUPS', processor, owner)) > 0 then join_ring(owner, processor, clock) end
  end
end

-- A worker has it, until `until_ms` if it says no more.
function line.hold(job, place, until_ms)
  take_out(job, place)
  redis.call('ZADD', 'LINE_RUNNING', until_ms, job)
  local by_owner, by_processor = held_by(place)
  redis.call('SADD', by_owner, job)
  redis.call('SADD', by_processor, job)
end

local function release(job, place)
  if redis.call('ZREM', 'LINE_RUNNING', job) == 0 then return end
  local by_owner, by_processor = held_by(place)
  redis.call('SREM', by_owner, job)
  redis.call('SREM', by_processor, job)
  come_back(place.owner)
end

-- There is no such job any more.
function line.forget(job)
  local place = line.place_of(job)
  if not place then return end
  redis.call('ZREM', 'LINE_LATER', job)
  release(job, place)
  take_out(job, place)
  redis.call('HDEL', 'LINE_JOBS', job)
end

-- One that waits is waited for no more. One that a worker has is the worker's to end: until then it counts for limits.
function line.cancel(job)
  if not redis.call('ZSCORE', 'LINE_RUNNING', job) then line.forget(job) end
end

-- A job that a worker had: it stands where it stood.
function line.put_back(job)
  local place = line.place_of(job)
  if not place or not redis.call('ZSCORE', 'LINE_RUNNING', job) then return end
  release(job, place)
  line.put(job, place, true)
end

-- Those whose moment has come.
function line.put_due(now_ms)
  for _, job in ipairs(redis.call('ZRANGE', 'LINE_LATER', '-inf', whole(now_ms), 'BYSCORE', 'LIMIT', 0, 500)) do
    redis.call('ZREM', 'LINE_LATER', job)
    local place = line.place_of(job)
    if place then line.put(job, place) end
  end
end

-- The processors of which a job may be taken now. `limits`: processor to how many of it may run.
function line.open(limits)
  local open = {}
  local paused = {}
  for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PAUSED')) do paused[processor] = true end
  for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PROCESSORS')) do
    if not paused[processor] then open[processor] = limits[processor] or false end
  end
  return open
end

local function has_room(processor, limit)
  return not limit or redis.call('SCARD', string.format('LINE_HELD_PROCESSOR', processor)) < limit
end

local function park(owner, score)
  for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PROCESSORS')) do
    redis.call('ZREM', owners_of(processor), owner)
  end
  redis.call('ZADD', 'LINE_FULL', score, owner)
end

-- Whose turn it is: an owner, of all whose tasks the first is to be taken. Nil: nobody waits whose task may run.
local function next_owner(open, owner_limit)
  while true do
    local owner, score
    for processor, limit in pairs(open) do
      if not has_room(processor, limit) then
        open[processor] = nil
      else
        local head = redis.call('ZRANGE', owners_of(processor), 0, 0, 'WITHSCORES')
        if head[1] and (not owner or tonumber(head[2]) < score) then owner, score = head[1], tonumber(head[2]) end
      end
    end
    if not owner then return nil end
    local held = owner_limit > 0 and redis.call('SCARD', string.format('LINE_HELD_OWNER', owner)) or -1
    if held < owner_limit or owner_limit == 0 then return owner end
    park(owner, whole(score))
  end
end

-- The next job, which is no longer the next after this. Nil: none may be taken.
function line.take(open, owner_limit)
  while true do
    local owner = next_owner(open, owner_limit)
    if not owner then return nil end
    local best, where, member
    for processor in pairs(open) do
      local head = redis.call('ZRANGE', string.format('LINE_GROUPS', processor, owner), 0, 0, 'WITHSCORES')
      if head[1] and (not best or tonumber(head[2]) < best) then best, where, member = tonumber(head[2]), processor, head[1] end
    end
    local job, place
    if member then
      local priority, batch = string.match(member, '^(%d):(.*)$')
      local group = string.format('LINE_GROUP', where, owner, priority, batch)
      job = redis.call('ZRANGE', group, 0, 0)[1]
      place = {processor = where, owner = owner, priority = priority, batch = batch}
    end
    if job then
      local clock = tick()
      local turn = whole(clock + ROUND)
      redis.call('ZREMRANGEBYSCORE', 'LINE_TURNS', '-inf', whole(clock))
      redis.call('ZADD', 'LINE_TURNS', turn, owner)
      redis.call('PEXPIRE', 'LINE_TURNS', LIVES_MS)
      for processor in pairs(open) do
        redis.call('ZADD', owners_of(processor), 'XX', turn, owner)
        redis.call('ZADD', groups_of(place, processor), 'XX', score_in_level(place, clock), member)
      end
      take_out(job, place)
      return job, place
    end
    -- Something of the line was lost; what is left of it is taken down.
    for processor in pairs(open) do
      if member and processor == where then redis.call('ZREM', groups_of(place), member) end
      if redis.call('ZCARD', string.format('LINE_GROUPS', processor, owner)) == 0 then
        redis.call('ZREM', owners_of(processor), owner)
      end
    end
  end
end

-- Owners that had their limit and have it no longer, as where the limit was raised.
function line.look_at_full(owner_limit)
  for _, owner in ipairs(redis.call('ZRANGE', 'LINE_FULL', 0, 15)) do
    if owner_limit == 0 or redis.call('SCARD', string.format('LINE_HELD_OWNER', owner)) < owner_limit then
      come_back(owner)
    end
  end
end

-- How long tasks took, by powers of the square root of two, each half as heavy after a dozen more. One more of `ms`.
function line.learnt(text, ms)
  local bucket = math.floor(2 * math.log(math.max(1, ms)) / math.log(2))
  local weights = {[bucket] = 1}
  for at, weight in string.gmatch(text or '', '(%d+)=([%d.]+)') do
    at, weight = tonumber(at), tonumber(weight) * 0.945
    if weight > 0.01 then weights[at] = (weights[at] or 0) + weight end
  end
  local parts = {}
  for at, weight in pairs(weights) do parts[#parts + 1] = string.format('%d=%.4f', at, weight) end
  return table.concat(parts, ';')
end

-- The mean of them in ms; nil: none has been measured.
local function usual_ms(processor)
  local sum, weights = 0, 0
  for at, weight in string.gmatch(redis.call('HGET', 'LINE_DURATIONS', processor) or '', '(%d+)=([%d.]+)') do
    sum, weights = sum + weight * 2 ^ ((at + 0.5) / 2), weights + weight
  end
  return weights > 0 and sum / weights or nil
end

local SAMPLE = 64

-- How many of an owner's own jobs go before one in this place.
local function own_before(place)
  local rank = redis.call('ZCOUNT', group_of(place), '-inf', '(' .. whole(place.order))
  local level, turn = 9 - place.priority, tonumber(redis.call('ZSCORE', groups_of(place), member_of(place)) or nil)
  local before = rank
  for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PROCESSORS')) do
    local heads = redis.call('ZRANGE', groups_of(place, processor), 0, SAMPLE - 1, 'WITHSCORES')
    for i = 1, #heads, 2 do
      local priority, batch = string.match(heads[i], '^(%d):(.*)$')
      if (9 - priority) <= level and not (heads[i] == member_of(place) and processor == place.processor) then
        local waiting = redis.call('ZCARD', string.format('LINE_GROUP', processor, place.owner, priority, batch))
        local turns = (9 - priority) < level and waiting or rank + ((not turn or tonumber(heads[i + 1]) < turn) and 1 or 0)
        before = before + math.min(waiting, turns)
      end
    end
  end
  return before
end

-- The place in the line of a job that stands there or is about to, from 1. It is exact for up to SAMPLE owners, and of
-- these for up to so many batches; of more, those whose turns come first stand for all.
function line.position(place)
  local own = own_before(place)
  local processors, turn = redis.call('SMEMBERS', 'LINE_PROCESSORS'), nil
  for _, processor in ipairs(processors) do
    local score = tonumber(redis.call('ZSCORE', owners_of(processor), place.owner) or nil)
    if score and (not turn or score < turn) then turn = score end
  end
  turn = turn or math.max((tonumber(redis.call('GET', 'LINE_CLOCK')) or 0) + 1,
    tonumber(redis.call('ZSCORE', 'LINE_TURNS', place.owner) or nil) or 0)
  local turns, names, unseen = {}, {}, 0
  for _, processor in ipairs(processors) do
    local heads = redis.call('ZRANGE', owners_of(processor), 0, SAMPLE - 1, 'WITHSCORES')
    for i = 1, #heads, 2 do
      local owner, score = heads[i], tonumber(heads[i + 1])
      if owner ~= place.owner then
        if not turns[owner] then names[#names + 1] = owner end
        turns[owner] = math.min(turns[owner] or score, score)
      end
    end
    if #heads == 2 * SAMPLE then unseen = unseen + redis.call('ZCARD', owners_of(processor)) - SAMPLE end
  end
  local found = 0
  if names[1] then
    local counts = redis.call('HMGET', 'LINE_COUNTS', unpack(names))
    for i, owner in ipairs(names) do
      found = found + math.min(tonumber(counts[i]) or 1, own + (turns[owner] < turn and 1 or 0))
    end
    found = found * (1 + unseen / #names)
  end
  return own + math.floor(found) + 1
end

-- In how many seconds it starts, as a JSON text: by how long tasks of its processor took, and how many run at once (at
-- most `limit`, where that is not 0). Null where nobody knows.
function line.starts_in(place, position, limit)
  for _, processor in ipairs(redis.call('SMEMBERS', 'LINE_PAUSED')) do
    if processor == place.processor then return 'null' end
  end
  local now_ms = math.floor(line.now_us() / 1000)
  local running = redis.call('ZCOUNT', 'LINE_RUNNING', whole(now_ms), '+inf')
  if running == 0 then return redis.call('ZCARD', 'WORKERS') > 0 and position == 1 and '0' or 'null' end
  local usual = usual_ms(place.processor)
  if not usual then return 'null' end
  local slots = limit > 0 and math.min(running, limit) or running
  return string.format('%.1f', usual * (position - 0.5) / slots / 1000)
end

return line
