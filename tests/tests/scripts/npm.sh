# npm, offline: packages from archives and from a directory, programs linked into node_modules/.bin.
export npm_config_cache=$OTHER.npm npm_config_offline=true npm_config_update_notifier=false npm_config_fund=false npm_config_audit=false
mkdir -p packages/tool packages/lib app
echo '{"name":"tool","version":"1.0.0","bin":{"tool":"cli.js"}}' > packages/tool/package.json
printf '#!/usr/bin/env node\nconsole.log("tool", require("lib"))\n' > packages/tool/cli.js; chmod +x packages/tool/cli.js
echo '{"name":"lib","version":"2.0.0","main":"index.js"}' > packages/lib/package.json
for n in $(seq 200); do echo "module.exports = $n" > packages/lib/m$n.js; done
echo 'let s = 0; for (let n = 1; n <= 200; n++) s += require("./m" + n); module.exports = s' > packages/lib/index.js
(cd packages/lib; npm pack --silent)
(cd packages/tool; npm pack --silent)
cd app
echo '{"name":"app","version":"1.0.0","scripts":{"go":"tool"}}' > package.json
npm install --silent ../packages/tool/tool-1.0.0.tgz ../packages/lib/lib-2.0.0.tgz
readlink node_modules/.bin/tool; npm run --silent go
rm -rf node_modules; npm ci --silent; npm run --silent go; ls node_modules/lib | wc -l
npm uninstall --silent lib; ls node_modules; npm install --silent ../packages/lib; readlink node_modules/lib; npm run --silent go
cd ..; rm -r app packages "$OTHER.npm"
