#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| remora_tests::fuzz::run("authority", bytes));
