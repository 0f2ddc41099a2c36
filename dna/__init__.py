"""The domain: files of DNA, English and tasks (read), what a task asks and its prompt
(tasks), how answers are scored (metrics), and an invented world to try it on (toy)."""
