-- Quotas in Redis. One call is one atomic step over all limits of a request; see quotas_redis.py for who calls it when.
--
-- KEYS[1]  hash: the hold of the request; measure -> its parts, "seconds:amount;…", the oldest first; done -> it was settled
-- KEYS[2…] hashes: the windows; number of a slice -> used in it; t -> their sum; s -> the slice at which t was made;
--          n -> the newest slice; k -> it knows what was used before it began to count: a flushed or evicted one does not
-- KEYS[…]  sorted sets: the gauges; request -> when its slot is lost unless it is renewed, in seconds
--
-- ARGV[1]  the step; ARGV[2] seconds, or empty for Redis's own clock; ARGV[3] JSON:
--          windows: [{measure, seconds | unit}], limits: [[place in windows, amount]], gauges: [amount], amounts: {measure: …},
--          id, lease (seconds), seeds: [[[seconds, amount], …]], slots: [[place of the gauge in KEYS, request, place of its hold], …],
--          again: this settlement was sent before, and nobody knows whether it arrived

local SLICES, DAY = 60, 86400
local KEPT_S = DAY -- of a window that nobody uses: asking the history anew costs more than its bytes
local HOLD_S, DONE_S = DAY, 120

local given = cjson.decode(ARGV[3])
local now
if ARGV[2] == '' then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
else
  now = tonumber(ARGV[2])
end
now = tonumber(string.format('%.6f', now)) -- as parts of holds remember it
local hold, windows = KEYS[1], given.windows or {}
local gauges_from = 1 + #windows

local function whole(number)
  return string.format('%.0f', number)
end

-- Days since 1970 and back, by the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
local function month_of(days)
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0)) * 12 + month - 1
end

local function days_of(number)
  local year, month = math.floor(number / 12), number % 12 + 1
  if month <= 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local yoe = year - era * 400
  local doy = math.floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
  return era * 146097 + yoe * 365 + math.floor(yoe / 4) - math.floor(yoe / 100) + doy - 719468
end

local function slice_at(span, seconds)
  if span.seconds then return math.floor(seconds * SLICES / span.seconds) end
  if span.unit == 'hour' then return math.floor(seconds / 3600) end
  if span.unit == 'day' then return math.floor(seconds / DAY) end
  if span.unit == 'week' then return math.floor((seconds + 3 * DAY) / (7 * DAY)) end
  return month_of(math.floor(seconds / DAY))
end

local function start_of(span, number)
  if span.seconds then return number * span.seconds / SLICES end
  if span.unit == 'hour' then return number * 3600 end
  if span.unit == 'day' then return number * DAY end
  if span.unit == 'week' then return number * 7 * DAY - 3 * DAY end
  return days_of(number) * DAY
end

local function lasting(span)
  return span.seconds and SLICES or 0
end

local function expires(span, number)
  return start_of(span, number + lasting(span) + 1)
end

-- For as long as anything in it counts, and a day.
local function keep(key, span, number)
  redis.call('PEXPIRE', key, whole(math.max(expires(span, number) - now + 60, KEPT_S) * 1000))
end

local function knows(key)
  return redis.call('HEXISTS', key, 'k') == 1
end

local function slices_of(key)
  local fields, slices = redis.call('HGETALL', key), {}
  for place = 1, #fields, 2 do
    local number = tonumber(fields[place])
    if number then slices[#slices + 1] = {number, tonumber(fields[place + 1])} end
  end
  table.sort(slices, function(one, other) return one[1] < other[1] end)
  return slices
end

-- What lies in the window now. Slices of the future, after somebody set the clock back, count as well.
local function used(key, span)
  local present = slice_at(span, now)
  local known = redis.call('HMGET', key, 't', 's')
  if known[2] == whole(present) then return tonumber(known[1]) end
  local total, oldest = 0, present - lasting(span)
  for _, slice in ipairs(slices_of(key)) do
    if slice[1] < oldest then
      redis.call('HDEL', key, whole(slice[1]))
    else
      total = total + slice[2]
    end
  end
  redis.call('HSET', key, 't', whole(total), 's', whole(present))
  keep(key, span, present)
  return total
end

local function add(key, span, number, amount)
  redis.call('HINCRBY', key, whole(number), whole(amount))
  redis.call('HINCRBY', key, 't', whole(amount))
  local newest = tonumber(redis.call('HGET', key, 'n') or number)
  if number >= newest then redis.call('HSET', key, 'n', whole(number)) end
  keep(key, span, math.max(number, newest))
end

local function take_back(key, number, amount)
  local there = tonumber(redis.call('HGET', key, whole(number)) or 0)
  local back = math.min(there, amount)
  if back > 0 then
    redis.call('HINCRBY', key, whole(number), whole(-back))
    redis.call('HINCRBY', key, 't', whole(-back))
  end
end

local function free_in(key, span, amount)
  local freed = 0
  for _, slice in ipairs(slices_of(key)) do
    freed = freed + slice[2]
    if freed >= amount then return expires(span, slice[1]) - now end
  end
  return 0
end

local function reset_in(key, span, total)
  if total <= 0 then return 0 end
  local newest = redis.call('HGET', key, 'n') or '0'
  if (tonumber(redis.call('HGET', key, newest)) or 0) == 0 then -- it was taken back
    for _, slice in ipairs(slices_of(key)) do
      if slice[2] > 0 then newest = slice[1] end
    end
  end
  return math.max(0, expires(span, tonumber(newest)) - now)
end

local function parts_of(measure)
  local parts, total = {}, 0
  for seconds, amount in string.gmatch(redis.call('HGET', hold, measure) or '', '([^:;]+):([^:;]+)') do
    parts[#parts + 1] = {tonumber(seconds), tonumber(amount)}
    total = total + tonumber(amount)
  end
  return parts, total
end

local function keep_parts(measure, parts)
  local words = {}
  for _, part in ipairs(parts) do
    if part[2] > 0 then words[#words + 1] = string.format('%.6f:%.0f', part[1], part[2]) end
  end
  redis.call('HSET', hold, measure, table.concat(words, ';'))
end

-- Into every window of that measure, and into the hold.
local function charge(measure, amount, seeded_only)
  for place, window in ipairs(windows) do
    local key = KEYS[1 + place]
    if window.measure == measure and (not seeded_only or knows(key)) then
      used(key, window)
      add(key, window, slice_at(window, now), amount)
    end
  end
  if not seeded_only then
    local parts = parts_of(measure)
    parts[#parts + 1] = {now, amount}
    keep_parts(measure, parts)
  end
end

local function refund(measure, amount)
  local parts = parts_of(measure)
  for place = #parts, 1, -1 do
    local back = math.min(amount, parts[place][2])
    if back > 0 then
      amount = amount - back
      parts[place][2] = parts[place][2] - back
      for index, window in ipairs(windows) do
        if window.measure == measure then
          take_back(KEYS[1 + index], slice_at(window, parts[place][1]), back)
        end
      end
    end
  end
  keep_parts(measure, parts)
end

local function unseeded()
  local missing = {}
  for place = 1, #windows do
    if not knows(KEYS[1 + place]) then missing[#missing + 1] = tostring(place - 1) end
  end
  return missing
end

-- {status, for each window: used, resets in seconds}
local function standings(status)
  local said = {status}
  for place, window in ipairs(windows) do
    local total = used(KEYS[1 + place], window)
    said[#said + 1] = whole(total)
    said[#said + 1] = string.format('%.6f', reset_in(KEYS[1 + place], window, total))
  end
  return said
end

local function in_use(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now))
  return redis.call('ZCARD', key)
end

-- What stands in the way of `amounts`: {"window place", wait} or {"gauge place", 1}, flat; empty: nothing does.
local function obstacles(amounts)
  local found = {}
  for _, limit in ipairs(given.limits) do
    local place = limit[1] + 1
    local window, amount = windows[place], amounts[windows[place].measure] or 0
    local over = amount > 0 and used(KEYS[1 + place], window) + amount - limit[2] or 0
    if over > 0 then
      found[#found + 1] = string.format('window:%d:%.0f', limit[1], limit[2])
      found[#found + 1] = string.format('%.6f', free_in(KEYS[1 + place], window, over))
    end
  end
  local slots = amounts.concurrent or 0
  for place, limit in ipairs(given.gauges or {}) do
    if slots > 0 and in_use(KEYS[gauges_from + place]) + slots > limit then
      found[#found + 1] = string.format('gauge:%d:%.0f', place - 1, limit)
      found[#found + 1] = '1'
    end
  end
  return found
end

local function refused(found)
  local said = standings('full')
  for _, word in ipairs(found) do said[#said + 1] = word end
  return said
end

local function lease(place)
  local key, ends = KEYS[gauges_from + place], now + given.lease
  redis.call('ZADD', key, string.format('%.6f', ends), given.id)
  redis.call('PEXPIRE', key, whole((given.lease + 60) * 1000))
end

local steps = {}

function steps.reserve()
  if redis.call('HEXISTS', hold, 'done') == 1 then return {'late'} end
  if redis.call('EXISTS', hold) == 1 then return standings('ok') end
  local missing = unseeded()
  if #missing > 0 then return {'seed', unpack(missing)} end
  local found = obstacles(given.amounts)
  if #found > 0 then return refused(found) end
  redis.call('HSET', hold, 'began', string.format('%.6f', now))
  redis.call('PEXPIRE', hold, HOLD_S * 1000)
  for measure, amount in pairs(given.amounts) do
    if measure ~= 'concurrent' and amount > 0 then charge(measure, amount) end
  end
  if (given.amounts.concurrent or 0) > 0 then
    for place = 1, #(given.gauges or {}) do lease(place) end
  end
  return standings('ok')
end

-- A hold that is not there any more (Redis was flushed) is begun anew with all of it.
function steps.raise()
  if redis.call('HEXISTS', hold, 'done') == 1 then return {'late'} end
  local missing = unseeded()
  if #missing > 0 then return {'seed', unpack(missing)} end
  local more = {}
  for measure, amount in pairs(given.amounts) do
    local _, held = parts_of(measure)
    if amount > held then more[measure] = amount - held end
  end
  local found = obstacles(more)
  if #found > 0 then return refused(found) end
  redis.call('PEXPIRE', hold, HOLD_S * 1000)
  for measure, amount in pairs(more) do charge(measure, amount) end
  redis.call('PEXPIRE', hold, HOLD_S * 1000)
  return standings('ok')
end

-- What holds nothing here was not counted here: it counts now, in windows that do not get it from their history. Unless it was
-- sent before: then it has been counted, and only the mark of that is gone.
function steps.settle()
  if redis.call('HEXISTS', hold, 'done') == 1 then return {'ok'} end
  local known = redis.call('EXISTS', hold) == 1
  for measure, amount in pairs(given.amounts) do
    local _, held = parts_of(measure)
    if amount > held and (known or not given.again) then
      charge(measure, amount - held, not known)
    elseif amount < held then
      refund(measure, held - amount)
    end
  end
  for place = 1, #(given.gauges or {}) do redis.call('ZREM', KEYS[gauges_from + place], given.id) end
  redis.call('DEL', hold)
  redis.call('HSET', hold, 'done', '1')
  redis.call('PEXPIRE', hold, DONE_S * 1000)
  return {'ok'}
end

function steps.seed()
  for place, window in ipairs(windows) do
    local key = KEYS[1 + place]
    if not knows(key) then
      redis.call('DEL', key)
      local oldest = slice_at(window, now) - lasting(window)
      for _, entry in ipairs(given.seeds[place]) do
        local number = slice_at(window, math.min(entry[1], now))
        if number >= oldest then add(key, window, number, entry[2]) end
      end
      redis.call('HDEL', key, 's')
      redis.call('HSET', key, 'k', '1')
      keep(key, window, slice_at(window, now))
    end
  end
  return {'ok'}
end

-- What the history has learned since of the time before a window was told.
function steps.top_up()
  for place, window in ipairs(windows) do
    local key = KEYS[1 + place]
    if knows(key) and given.seeds[place] > 0 then
      used(key, window)
      add(key, window, slice_at(window, now), given.seeds[place])
    end
  end
  return {'ok'}
end

-- Where no limit named a window for a while, nobody counted in it.
function steps.at_least()
  for place, window in ipairs(windows) do
    local key = KEYS[1 + place]
    if knows(key) then
      local missing = given.seeds[place] - used(key, window)
      if missing > 0 then add(key, window, slice_at(window, now), missing) end
    end
  end
  return {'ok'}
end

function steps.renew()
  for _, slot in ipairs(given.slots) do
    if redis.call('HEXISTS', KEYS[slot[3] + 1], 'done') == 0 then
      redis.call('ZADD', KEYS[slot[1] + 1], string.format('%.6f', now + given.lease), slot[2])
      redis.call('PEXPIRE', KEYS[slot[1] + 1], whole((given.lease + 60) * 1000))
    end
  end
  return {'ok'}
end

return steps[ARGV[1]]()
