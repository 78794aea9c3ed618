// Starts Swagger UI on /docs. It looks for nothing anywhere else: no validator, no logo.
const { SwaggerUIBundle } = globalThis;
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
