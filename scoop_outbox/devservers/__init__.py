"""Real servers on this machine, for tests, the demonstration and benchmarks: Postgres, Kafka and RabbitMQ."""
