# Targets: build test docs-test bench gobench fuzz nightly cross release deb man install-test-deps install-s3-servers install-database-server install-monitoring-tools
#
# `make test` is everything that must pass before a change is merged.

SHELL     := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: all build release deb man container journey test docs-test vet bench gobench fuzz nightly cross install-test-deps install-s3-servers install-database-server install-monitoring-tools

GO       ?= go
FUZZTIME ?= 20s
FUZZJOBS ?= 2
BENCH    ?= .
COUNT    ?= 6
PEERS    ?= .peers
S3       ?= .s3
LENGTHS  ?= 100MB,400MB
TIMEOUT  ?= 40m

all: build

# One static program per command, in bin/.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -o bin/ ./cmd/...

# What is given out, in dist/: archives of programs, units of systemd, manual pages, completion
# and documentation; Debian packages; checksums. The same commit gives the same bytes.
ARCHITECTURES ?= amd64 arm64
VERSION       ?= $(shell contrib/release/version)
release:
	GO=$(GO) contrib/release/build $(VERSION) dist $(ARCHITECTURES)

# A Debian package for this machine, in dist/.
deb:
	GO=$(GO) FORMATS=deb contrib/release/build $(VERSION) dist $$($(GO) env GOHOSTARCH)

# Manual pages and completion of shells, in bin/manual/.
man: build
	for program in bin/neo*; do $$program __manual bin/manual; done

# The race detector needs a C compiler. Some tests run Python's ZODB and ZEO:
# those of NEO_TEST_PYTHON if set, otherwise of $(PEERS), made if needed. Some run
# S3 servers: those in the directory NEO_TEST_S3, otherwise in $(S3). Some run MariaDB,
# which is installed if need be, as are promtool, a browser and what checks units and manual pages. Some mount
# small disks and make networks, which takes root. `go test ./...` alone leaves out
# the tests for which the machine lacks something; here, and with CI set, they fail.
test: vet $(if $(NEO_TEST_PYTHON),,$(PEERS)/installed) $(if $(NEO_TEST_S3),,$(S3)/installed) install-database-server install-monitoring-tools
	NEO_TEST_PEERS=required $(GO) test -race -timeout $(TIMEOUT) ./...

# The commands of the pages in docs, which make test runs as well.
docs-test: $(if $(NEO_TEST_PYTHON),,$(PEERS)/installed)
	$(GO) test -count 1 -timeout $(TIMEOUT) -run 'Guide|Troubleshooting' ./cmd/internal/proctest

vet:
	$(GO) build ./...
	! gofmt -l $$(git ls-files '*.go') | grep . >&2
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Everything measured beside Python in one run: FileStorage and ZEO, and, if PEER
# is a Python that can import neo, the Python implementation; with MySQLdb, also on
# MariaDB, where that is installed. Then the ZEO servers again, with clients that cost
# little. The peak memory of each program is measured over databases of LENGTHS: a longer
# run is LENGTHS=100MB,400MB,1600MB.
bench: build $(PEERS)/installed
	bin/neobench compare --bin bin --python $(PEERS)/bin/python $(if $(PEER),--peer $(PEER)) --lengths $(LENGTHS)
	if command -v mariadbd /usr/sbin/mariadbd >/dev/null; then bin/neobench backends --bin bin $(if $(PEER),--peer $(PEER)); \
		else echo 'left out: neobench backends, because there is no mariadbd (make install-database-server)'; fi
	$(GO) test -run '^$$' -bench Door -benchtime 3s ./cmd/internal/proctest

# The benchmarks of the packages; compare two runs with benchstat.
gobench:
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./...

# Long runs: 10,000 simulated clusters, a thousand killed processes, a hundred killed
# imports and fifty of backup repositories, five hundred killed writers of snapshots, fifty
# killed restores of each kind, more orders of the calls of two writers, the index of a terabyte, ten minutes of processes killed,
# stopped and cut off, ten of a backup cluster, fuzzing.
nightly: vet $(PEERS)/installed
	$(GO) test ./cluster/clustertest -run 'TestSimulation|TestImporting|TestHangs|TestStaleCopies|TestDeletions|TestFollowing$$' -seeds 10000 -import-seeds 10000 -followings 10000 -first-seed $$(date +%s) -timeout 2h
	$(GO) test ./cmd/internal/proctest -run 'TestKill$$' -crash-rounds 1000 -timeout 2h
	$(GO) test ./cmd/internal/proctest -run 'TestImportKilled|TestImportOfBackupKilled' -import-rounds 100 -timeout 3h
	$(GO) test ./cmd/internal/proctest -run TestFollowKilled -snapshot-rounds 500 -timeout 1h
	$(GO) test ./cmd/internal/proctest -run TestRestoreKilled -restore-rounds 50 -restore-size 1GB -timeout 1h
	$(GO) test ./backup/writer -run 'TestOrders|TestPacks' -switches 1 -seeds 500 -timeout 2h
	$(GO) test ./backup/reader -run 'TestManySegments|TestLargeIndex' -reader.segments 8000 -reader.records 1000000000 -timeout 1h -v
	$(GO) test ./backup/keeper -run TestYears -seeds 300 -steps 200 -first-seed $$(date +%s) -timeout 2h
	$(GO) test ./cmd/internal/proctest -run TestChaos -chaos-minutes 10 -v
	$(GO) test ./cmd/internal/proctest -run TestBackupChaos -backup-minutes 10 -timeout 1h -v
	.ci/fuzz 600s $(FUZZJOBS)

# Each fuzz target for FUZZTIME, FUZZJOBS at a time.
fuzz:
	.ci/fuzz $(FUZZTIME) $(FUZZJOBS)

# Everything builds where it is supposed to run.
cross:
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) build ./...
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 $(GO) build ./...

# Python peers for the tests of compatibility, in virtual environments of their
# own: ZODB and ZEO, the last ZEO 5, zodbtools, whose last release needs ZODB 5,
# and Cython below 3 to be built, and the tools that people have for ZODB. On Debian: apt-get install -y python3-venv g++ python3-dev
install-test-deps: $(PEERS)/installed
$(PEERS)/installed: .ci/requirements.txt .ci/zodbtools.txt .ci/zeo5.txt .ci/zodb-tools.txt .ci/zodb-convert.txt
	python3 -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -r .ci/requirements.txt
	$(PEERS)/bin/python -c 'import ZODB, ZEO, msgpack, ZODB.tests.util, ZEO.tests.forker'
	python3 -m venv --clear $(PEERS)/zodbtools
	PIP_CONSTRAINT=.ci/zodbtools.txt $(PEERS)/zodbtools/bin/python -m pip install --quiet ZODB zodbtools
	$(PEERS)/zodbtools/bin/python -c 'import zodbtools.zodbdump'
	python3 -m venv --clear $(PEERS)/zeo5
	$(PEERS)/zeo5/bin/python -m pip install --quiet -r .ci/zeo5.txt
	$(PEERS)/zeo5/bin/python -c 'import ZODB, ZEO._forker, msgpack'
	python3 -m venv --clear $(PEERS)/tools
	$(PEERS)/tools/bin/python -m pip install --quiet -r .ci/zodb-tools.txt
	$(PEERS)/tools/bin/python -m pip install --quiet --no-deps --ignore-requires-python -r .ci/zodb-convert.txt
	for tool in zodbconvert zodb-convert multi-zodb-gc zodbverify zodbupdate zeo-nagios; do $(PEERS)/tools/bin/$$tool --help >/dev/null; done
	touch $@

# The S3 servers of the tests: MinIO, versitygw, moto, s3rver. It takes some minutes
# the first time. On Debian: apt-get install -y python3-venv npm
install-s3-servers: $(S3)/installed
$(S3)/installed: .ci/s3-servers
	GO=$(GO) .ci/s3-servers $(S3)
	touch $@

# The database server of the tests, on Debian and Ubuntu: MariaDB with its plugin RocksDB.
install-database-server:
	.ci/database-server

# What the tests of monitoring and of packages need, on Debian and Ubuntu: promtool, a browser, mandoc, systemd-analyze.
install-monitoring-tools:
	.ci/monitoring-tools

# The files of a container image, in dist/container: podman build -t neo dist/container
container: build
	contrib/container/build bin dist/container

# From the package to the upgrade, on two machines of their own that run Debian with systemd: as root, with
# apt-get install -y mmdebstrap iproute2. It takes some minutes.
journey:
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; arch=$$($(GO) env GOHOSTARCH); \
	for version in v1.9.0 v1.10.0; do GO=$(GO) FORMATS=deb contrib/release/build $$version "$$work" "$$arch"; done; \
	contrib/journey/run "$$work/neozodb_1.9.0_$$arch.deb" "$$work/neozodb_1.10.0_$$arch.deb" testdata/fs/site.fs
