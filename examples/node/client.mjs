// Asks a sidecar about one prompt, from Node: the stub is made from the proto file as it is.
//
//   guardrail serve &
//   cd examples/node && npm install
//   node client.mjs "Why does bread rise?"
//
// Exits with 0 where the text may be shown, with 3 where it may not, and with 1 where nobody could say.
// GUARDRAIL_TARGET is the sidecar's address, GUARDRAIL_TOKEN a token of its token file, GUARDRAIL_CA the file of the CA
// that signed its certificate.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTO = process.env.GUARDRAIL_PROTO ?? fileURLToPath(new URL("../../proto/guard.proto", import.meta.url));
const { GuardService } = grpc.loadPackageDefinition(
  // A value that this proto file does not know stays a number, and a number is in no list of what may be shown.
  protoLoader.loadSync(PROTO, { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true }),
).guardrail.v1;

const LOOPBACK = /^(127\.\d+\.\d+\.\d+|localhost|\[::1\]):\d+$/;

const SHOWN = new Set(["ACTION_ALLOW", "ACTION_FLAG"]);

/** Whether a decision lets its text be shown: never where it is missing, unspecified or unknown. */
export function mayBeShown(decision) {
  return SHOWN.has(decision?.action);
}

function connect() {
  const { GUARDRAIL_TARGET: target = "127.0.0.1:50051", GUARDRAIL_CA: ca, GUARDRAIL_TOKEN: token } = process.env;
  if (token && !ca && !LOOPBACK.test(target)) throw new Error("beyond loopback a token needs TLS: set GUARDRAIL_CA");
  const credentials = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure();
  return new GuardService(target, credentials);
}

/** Resolves to the decision about a conversation's last message; rejects with the status where there is none. */
export function check(client, messages, { deadlineMs = 30_000 } = {}) {
  const metadata = new grpc.Metadata();
  if (process.env.GUARDRAIL_TOKEN) metadata.set("authorization", `Bearer ${process.env.GUARDRAIL_TOKEN}`);
  return new Promise((resolve, reject) => {
    client.Check({ messages }, metadata, { deadline: Date.now() + deadlineMs }, (error, response) =>
      error ? reject(error) : resolve(response.decision),
    );
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  let client;
  try {
    client = connect();
    const decision = await check(client, [{ role: "ROLE_USER", content: process.argv[2] ?? "Why does bread rise?" }]);
    const why = (decision?.reasons ?? []).map((reason) => reason.subject).join(", ");
    console.log(mayBeShown(decision) ? "may be shown" : "may not be shown", why && `(${why})`);
    process.exitCode = mayBeShown(decision) ? 0 : 3;
  } catch (error) {
    const why = error.details ? `${grpc.status[error.code]}: ${error.details}` : error.message;
    console.error(`not checked, so it may not be shown: ${why}`);
    process.exitCode = 1;
  } finally {
    client?.close();
  }
}
