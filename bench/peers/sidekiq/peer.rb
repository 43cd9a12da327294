# Sidekiq as a contestant of the benchmark. How a peer talks to the harness stands in ../README.md.
#
# Debian's package. Ten threads, its default and the fastest here: more of them wait for Ruby's lock. A job is taken off its list before
# the work begins (the free version's BRPOP), so what a killed process had is lost; nothing is kept of what is finished.

require "json"
require "sidekiq"
require "sidekiq/api"
require "sidekiq/launcher"

BULK = 1_000
THREADS = 10
# The gem for Redis is newer than Debian's Sidekiq knows; each warning would cost it time.
Redis.silence_deprecations = true
Redis.sadd_returns_boolean = false
URL = ENV.fetch("BENCH_REDIS_URL", "redis://127.0.0.1:6379")

$stdout.sync = true
Sidekiq.logger.level = Logger::WARN

def say(event) = $stdout.write("#{JSON.generate(event)}\n")
def now = Process.clock_gettime(Process::CLOCK_REALTIME, :float_millisecond)
def pad(bytes) = "x" * (bytes - JSON.generate(pad: "").size)

def gate
  say(event: "ready")
  $stdin.gets
end

DRIVER = begin
  require "hiredis"
  :hiredis
rescue LoadError
  :ruby
end

def redis(size) = Sidekiq::RedisConnection.create(url: URL, size: size, driver: DRIVER)

class Tally
  attr_reader :completed, :begun, :last

  def initialize
    @lock = Mutex.new
    @completed = 0
  end

  def count
    time = now
    @lock.synchronize do
      @begun ||= time
      @last = time
      @completed += 1
    end
  end
end

TALLY = Tally.new
WAITS = Queue.new

class Probe
  include Sidekiq::Job
  sidekiq_options queue: "bench", retry: true

  def perform(job) = TALLY.count
end

class Timed
  include Sidekiq::Job
  sidekiq_options queue: "bench", retry: true

  def perform(job) = WAITS << now - job["sent"]
end

def launch
  Sidekiq.redis = redis(THREADS + 5)
  options = Sidekiq.options.merge(queues: ["bench"], concurrency: THREADS, tag: "bench", labels: [], timeout: 5)
  launcher = Sidekiq::Launcher.new(options)
  launcher.run
  launcher
end

# Calls the block until nothing is left, in so many threads.
def repeat(jobs, each, threads)
  lock = Mutex.new
  left = jobs
  take = -> { lock.synchronize { count = [each, left].min; left -= count; count } }
  Sidekiq.redis = redis(threads)
  Sidekiq.redis { |connection| connection.ping }
  gate
  say(event: "begun", at: now)
  threads.times.map { Thread.new { while (count = take.call) > 0 do yield count end } }.each(&:join)
  say(event: "done", at: now)
end

command, *numbers = ARGV
numbers.map!(&:to_i)
case command
when "versions"
  say(event: "versions", text: "Sidekiq #{Sidekiq::VERSION} (#{THREADS} threads, #{DRIVER} driver), Ruby #{RUBY_VERSION}")
when "bulk"
  jobs, bytes, in_flight = numbers
  job = { "pad" => pad(bytes) }
  repeat(jobs, BULK, in_flight) { |count| Sidekiq::Client.push_bulk("class" => Probe, "args" => Array.new(count) { [job] }) }
when "single"
  jobs, bytes, in_flight = numbers
  job = { "pad" => pad(bytes) }
  # More threads than this only wait for Ruby's lock.
  repeat(jobs, 1, [in_flight, 10].min) { Probe.perform_async(job) }
when "drain"
  gate
  launch
  Thread.new do
    said = 0
    loop do
      completed = TALLY.completed
      say(event: "count", jobs: said = completed) if completed != said
      sleep 0.01
    end
  end
  $stdin.gets
  say(event: "begun", at: TALLY.begun || 0)
  say(event: "done", at: TALLY.last || 0)
  exit!(0)
when "pickup"
  jobs, = numbers
  launch
  sleep 0.5
  gate
  latencies = Array.new(jobs) { WAITS.pop }
  say(event: "done", at: now, latencies: latencies)
  exit!(0)
when "pace"
  jobs, bytes, rate = numbers
  text = pad(bytes)
  Sidekiq.redis = redis(4)
  Sidekiq.redis { |connection| connection.ping }
  gate
  start = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  due = Queue.new
  senders = 4.times.map { Thread.new { while due.pop != :end do Timed.perform_async({ "pad" => text, "sent" => now }) end } }
  say(event: "begun", at: now)
  jobs.times do |number|
    wait = start + number.to_f / rate - Process.clock_gettime(Process::CLOCK_MONOTONIC)
    sleep wait if wait > 0
    due << number
  end
  senders.size.times { due << :end }
  senders.each(&:join)
  say(event: "done", at: now)
else
  abort "unknown command #{command}"
end
