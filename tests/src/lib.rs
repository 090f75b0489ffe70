//! End-to-end tests: real processes on loopback, hostile peers and faults.
//!
//! The library holds what the demonstration, the benchmarks and the tests share: starting and stopping the programs
//! (`harness`), a recording proxy (`tap`), the search for canaries in bytes, files and memory (`canary`), what a node keeps to itself
//! (`secrets`), a node with an attacker in it (`attacker`), a key process without a node (`cryptod`), a stranger that signs its
//! requests (`caller`), backups that somebody changed (`forge`), bad REQUESTs
//! without end (`flood`), an author's desk (`desk`) and one of an author whose module is swapped (`swap_desk`), calls of a module at a steady rate
//! (`load`), a module that does wrong (`hostile`), a directory that lies (`liar`), a disk that is full (`disk`), what processes hold
//! while a large file passes (`large`), and a machine for a
//! service manager (`machine`). It reads the programs' own output and `/proc`, and reaches them only as an operator, a supervisor or a peer could.
#![forbid(unsafe_code)]

pub mod attacker;
pub mod caller;
pub mod canary;
pub mod cryptod;
pub mod desk;
pub mod disk;
pub mod flood;
pub mod forge;
pub mod harness;
pub mod hostile;
pub mod large;
pub mod liar;
pub mod light;
pub mod load;
pub mod machine;
pub mod secrets;
pub mod swap_desk;
pub mod tap;
pub mod world;
