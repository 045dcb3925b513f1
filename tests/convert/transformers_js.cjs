// Answers greedily with transformers.js: node transformers_js.cjs FOLDER REQUEST.json, to stdout as JSON.
const fs = require("fs");
const path = require("path");
const { AutoModelForImageTextToText, Tensor, env } = require("@huggingface/transformers");

async function main() {
  const [folder, file] = process.argv.slice(2);
  const { ids, tiles, edge, pixels, limit } = JSON.parse(fs.readFileSync(file, "utf8"));
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(folder);
  const model = await AutoModelForImageTextToText.from_pretrained(path.basename(folder), {
    dtype: "fp32",
    device: "cpu",
  });
  const tokens = new Tensor("int64", BigInt64Array.from(ids.map(BigInt)), [1, ids.length]);
  const ones = new BigInt64Array(ids.length).fill(1n);
  const found = await model.generate({
    input_ids: tokens,
    attention_mask: new Tensor("int64", ones, [1, ids.length]),
    pixel_values: new Tensor("float32", Float32Array.from(pixels), [1, tiles, 3, edge, edge]),
    pixel_attention_mask: new Tensor(
      "bool", new Uint8Array(tiles * edge * edge).fill(1), [1, tiles, edge, edge]),
    max_new_tokens: limit,
    do_sample: false,
  });
  console.log(JSON.stringify(Array.from(found.data, Number).slice(ids.length)));
}

main();
