# make demo   the main job from image build to verified attestation document
# make test   every test; what CI runs
# Both install what is missing and give back what they borrow.

CARGO ?= cargo
TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
BIN := target/$(TRIPLE)/debug
# 2 MiB pages that the end-to-end tests hold at most: eight enclaves of 64 MiB
# side by side, and what the nodes of single tests add.
TEST_PAGES := 512
DEMO_PAGES := 64

# The end-to-end tests need root: every test program is started through sudo
# where make itself is not root.
ifneq ($(shell id -u),0)
export CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_RUNNER := sudo --preserve-env
endif

.PHONY: demo test machines check bench fuzz kernel qemu programs everything release node-package clean

demo: programs
	scripts/with-huge-pages.sh $(DEMO_PAGES) scripts/demo.sh $(BIN)

test: everything
	scripts/setup.sh test
	scripts/container-tools.sh target/container-tools
	scripts/debian-rootfs.sh target/debian.tar
	-scripts/default-seccomp.sh target/containerd-seccomp.json
	scripts/with-huge-pages.sh $(TEST_PAGES) $(CARGO) test --workspace --no-fail-fast
	$(CARGO) check -p attestation --no-default-features
	$(CARGO) test --manifest-path attestation/conformance/Cargo.toml --target-dir target/conformance
	OPENSSL_STATIC=1 $(CARGO) test --manifest-path eif/conformance/Cargo.toml --target-dir target/conformance
	scripts/with-huge-pages.sh $(DEMO_PAGES) scripts/demo.sh $(BIN)
	$(MAKE) machines

# What boots kernels: the end-to-end tests on the qemu engine, programs of other
# hands, and true AF_VSOCK sockets. Builds a kernel the first time.
machines: everything
	scripts/setup.sh machines
	scripts/with-huge-pages.sh $(TEST_PAGES) scripts/test-machines.sh
	scripts/true-vsock.sh

programs:
	scripts/setup.sh build
	$(CARGO) build --workspace --bins
	scripts/rootfs.sh $(BIN)/hello target/hello-rootfs
	scripts/kernel.sh

# Programs and tests in one build: alone, the programs get dependencies with other
# features, and whoever runs tests next compiles half of them again.
everything:
	scripts/setup.sh build
	$(CARGO) build --workspace --all-targets
	scripts/rootfs.sh $(BIN)/hello target/hello-rootfs
	scripts/kernel.sh

release:
	scripts/setup.sh build
	$(CARGO) build --workspace --bins --release

# What nodes get: archive and Debian package of the allocator, image of the device plugin.
node-package:
	scripts/setup.sh build
	$(CARGO) build --release -p enclave-node
	scripts/node-package.sh target/$(TRIPLE)/release/enclave-node target/node-package

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	scripts/deny.sh

kernel:
	eif/kernel/build.sh

qemu:
	scripts/qemu.sh

bench: everything
	scripts/setup.sh test
	scripts/setup.sh machines
	scripts/with-huge-pages.sh $(TEST_PAGES) env LOAD_VERDICT=1 $(CARGO) test --release -p nitro-device --test load -- --nocapture
	$(CARGO) test --release -p attestation --test promises -- --nocapture --test-threads 1
	$(CARGO) bench --manifest-path attestation/conformance/Cargo.toml --target-dir target/conformance -- 6
	$(CARGO) test --release --workspace --bin enclave-shim the_relay_adds -- --nocapture
	$(CARGO) bench -p bench --bench parts
	scripts/bench.sh
	scripts/many.sh
	SPEED_VERDICT=1 OPENSSL_STATIC=1 $(CARGO) test --manifest-path eif/conformance/Cargo.toml --target-dir target/conformance --bench speed -- 9

fuzz:
	scripts/fuzz.sh

clean:
	$(CARGO) clean
