// The clients of npm, each as its documentation says, uploading one file and saying where it is now.
//
//     node node_clients.mjs tus-js-client ENDPOINT FILE
import { createReadStream } from "node:fs";

const [client, endpoint, path] = process.argv.slice(2);

// Each starts anew when bytes have gone through, so a few would do; the machine may be slow.
const retryDelays = Array(30).fill(50);

async function tusJsClient() {
  const { Upload } = await import("tus-js-client");
  return new Promise((resolve, reject) => {
    const metadata = { filename: "large.bin", filetype: "x/y", processor: "checksum" };
    const upload = new Upload(createReadStream(path), {
      endpoint,
      retryDelays,
      metadata,
      onSuccess: () => resolve(upload.url),
      onError: reject,
    });
    upload.start();
  });
}

async function uppy() {
  const { default: Uppy } = await import("@uppy/core");
  const { default: Tus } = await import("@uppy/tus");
  const it = new Uppy({ meta: { processor: "checksum" } }).use(Tus, { endpoint, retryDelays });
  it.addFile({ name: "large.bin", type: "x/y", data: createReadStream(path) });
  const { successful, failed } = await it.upload();
  if (failed.length) throw new Error(failed[0].error);
  return successful[0].uploadURL;
}

console.log(await { "tus-js-client": tusJsClient, uppy }[client]());
