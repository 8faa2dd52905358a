#!/bin/sh
# Asks a sidecar with grpcurl, which learns the methods by reflection: no proto file is needed.
#
#   guardrail serve &
#   sh examples/grpcurl.sh
#
# TARGET is the sidecar's address. With a token: set GUARDRAIL_TOKEN; with TLS: set GUARDRAIL_CA to the CA's file.
set -eu

TARGET=${TARGET:-127.0.0.1:50051}
SERVICE=guardrail.v1.GuardService

ask() { # method; the request is read from standard input
    set -- -d @ "$TARGET" "$1"
    [ -z "${GUARDRAIL_TOKEN:-}" ] || set -- -H "authorization: Bearer $GUARDRAIL_TOKEN" "$@"
    if [ -n "${GUARDRAIL_CA:-}" ]; then set -- -cacert "$GUARDRAIL_CA" "$@"; else set -- -plaintext "$@"; fi
    grpcurl "$@"
}

echo "--- is it ready?"
ask grpc.health.v1.Health/Check <<'JSON'
{"service": "guardrail.v1.GuardService"}
JSON

echo "--- what is it?"
ask "$SERVICE/GetServerInfo" <<'JSON'
{}
JSON

echo "--- a prompt"
ask "$SERVICE/Check" <<'JSON'
{"messages": [{"role": "ROLE_USER", "content": "How do I kill a Python process?"}]}
JSON

echo "--- an answer, after the prompt that it answers"
ask "$SERVICE/Check" <<'JSON'
{
  "request_id": "example-1",
  "messages": [
    {"role": "ROLE_USER", "content": "How do I list a folder in Python?"},
    {"role": "ROLE_ASSISTANT", "content": "Use `os.listdir(path)`, or `pathlib.Path(path).iterdir()`."}
  ]
}
JSON

echo "--- code"
ask "$SERVICE/ScanCode" <<'JSON'
{"block": {"language": "python", "code": "import subprocess\nsubprocess.run('ls ' + path, shell=True)\n"}}
JSON

echo "--- many at once: one answer for each, in their order"
ask "$SERVICE/CheckBatch" <<'JSON'
{"id": "a", "messages": [{"role": "ROLE_USER", "content": "Why does bread rise?"}]}
{"id": "b", "messages": [{"role": "ROLE_USER", "content": "How do I poach an egg?"}]}
JSON
