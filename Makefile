.PHONY: example install test test-slow

example:
	bash scripts/example.sh

install:
	bash scripts/install.sh

test:
	bash scripts/test.sh

test-slow:
	bash scripts/test.sh -m slow
