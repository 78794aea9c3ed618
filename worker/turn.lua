-- A worker's turn: jobs are let go of and others are taken, in one step (worker/leases.py).
--
-- Lets go of the jobs from ARG.jobs on: the first ARG.ended have ended and are no more, the others are given back, which
-- wakes the other workers. Moves what stands on arq's queue into the line, and what is due; puts back what no worker has
-- any more. Then takes up to ARG.wanted jobs, each with a lease. A Redis that is full refuses a lease only where nothing
-- was let go of before it, so what has ended always gets through.
-- KEY  queue: arq's
-- ARG  worker, lease_ms, lease, payload: how those keys begin; control, wake: a channel and what is published there;
--      wanted, ended, owner_limit; limits: JSON object, processor to how many of it may run; from ARG.jobs on: jobs
-- Returns how many jobs there are, in how many ms the next one is due (-1: none), then each job taken and its payload.
local line = LINE
local queue, worker, lease, payload = KEY.queue, ARG.worker, ARG.lease, ARG.payload
local OLD_SKEW_MS, LOOK, PAGE = 3600000, 2000, 128
local function whole(number) return string.format('%d', number) end
local now_us = line.now_us()
local now_ms = math.floor(now_us / 1000)
local wanted, owner_limit = tonumber(ARG.wanted), tonumber(ARG.owner_limit)

-- What can fail comes before the first write, because Redis rolls nothing back.
local owners, given_back = {}, false
redis.call('ZCARD', queue)
redis.call('HGET', 'LINE_JOBS', '')
redis.call('SCARD', 'LINE_PAUSED')
line.check('')
for i = ARG.jobs, #ARGV do
  owners[i] = redis.call('GET', lease .. ARGV[i])
  line.check(ARGV[i])
end

for i = ARG.jobs, #ARGV do
  local job, owner = ARGV[i], owners[i]
  if not owner or owner == worker then
    if i < ARG.jobs + ARG.ended then
      redis.call('DEL', lease .. job, payload .. job)
      redis.call('ZREM', queue, job)
      line.forget(job)
    else
      redis.call('DEL', lease .. job)
      line.put_back(job)
      given_back = true
    end
  end
end
if given_back then redis.call('PUBLISH', ARG.control, ARG.wake) end

-- From arq's queue. What a worker of before there was a line has stays there; so does nothing else.
local function has_a_job(task_id, attempt)
  for number = 1, math.min(tonumber(attempt), 100) do
    if line.knows(task_id .. '.' .. number) then return true end
  end
end
local function move(job, score)
  local task_id, attempt = string.match(job, '^(%x+)%.(%d+)$')
  if line.knows(job) or task_id and has_a_job(task_id, attempt) then return end
  local found = task_id and redis.pcall('HMGET', 'ANY_STATE' .. task_id, 'processor', 'owner', 'priority', 'batch_id')
  if not found or found.err then found = {} end
  -- Versions of before put an hour back what they queued, and arq puts ahead what it defers.
  local at_ms = math.floor(score) + (found[1] and OLD_SKEW_MS or 0)
  local order = math.max(0, math.min(now_us, at_ms * 1000))
  local place = line.place_by(found[1], found[2], found[3], found[4], order)
  if not found[1] and at_ms > now_ms then line.put_later(job, place, whole(at_ms)) else line.put(job, place) end
end
local at = 0
while wanted > 0 and at < LOOK do
  local page = redis.call('ZRANGE', queue, at, at + PAGE - 1, 'WITHSCORES')
  for i = 1, #page, 2 do
    if redis.call('EXISTS', lease .. page[i]) == 1 and not line.knows(page[i]) then
      at = at + 1
    else
      move(page[i], tonumber(page[i + 1]))
      redis.call('ZREM', queue, page[i])
    end
  end
  if #page < 2 * PAGE then break end
end

line.put_due(now_ms)
for _, job in ipairs(redis.call('ZRANGE', 'LINE_RUNNING', '-inf', whole(now_ms), 'BYSCORE', 'LIMIT', 0, 100)) do
  local left_ms = redis.call('PTTL', lease .. job)
  if left_ms == -2 then
    line.put_back(job)
  else
    redis.call('ZADD', 'LINE_RUNNING', 'XX', whole(now_ms + math.max(left_ms, 1000)), job)
  end
end

local answer = {0, -1}
local open = wanted > 0 and line.open(cjson.decode(ARG.limits))
local looked_again = false
while #answer - 2 < 2 * wanted do
  local job, place = line.take(open, owner_limit)
  if job then
    if redis.call('SET', lease .. job, worker, 'NX', 'PX', ARG.lease_ms) then
      line.hold(job, place, whole(now_ms + ARG.lease_ms))
      answer[#answer + 1] = job
      local found = redis.pcall('GET', payload .. job)
      answer[#answer + 1] = type(found) == 'string' and found or ''
    else -- somebody has it all the same
      line.hold(job, place, whole(now_ms + math.max(redis.call('PTTL', lease .. job), 1000)))
    end
  elseif looked_again then
    break
  else
    looked_again = true
    line.look_at_full(owner_limit)
  end
end
answer[1] = redis.call('ZCARD', queue) + redis.call('ZCARD', 'LINE_WAITING') + redis.call('ZCARD', 'LINE_RUNNING')
local due = redis.call('ZRANGE', 'LINE_LATER', 0, 0, 'WITHSCORES')[2]
if due then answer[2] = math.max(0, math.ceil(due - now_ms)) end
return answer
